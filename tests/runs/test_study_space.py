"""What a sweep searches, as it is written: ranges, choices, mistakes."""

import optuna
import pytest

from clipkit.errors import UserError
from clipkit.runs.command_line import prepare
from clipkit.runs.compose import compose_config
from clipkit.runs.study.drawing import Drawing
from clipkit.runs.study.plan import Objective, Plan, read_plan
from clipkit.runs.study.space import Parameter, read_space

SLOW = pytest.mark.slow
BASE = ("approach=aamp_mlp", "evaluators=[classify]")


def planned(*overrides: str) -> Plan:
    given = (*(text for text in BASE if text.partition("=")[0] not in {o.partition("=")[0] for o in overrides}),)
    line = [*given, *overrides]
    return read_plan(compose_config("sweep", ["sweep=few_shot", *line]), ["sweep=few_shot", *line])


def test_a_space_is_read_in_its_order_and_what_is_given_leaves_it() -> None:
    space = {
        "approach": {"choices": ["mlp", "aamp_mlp"], "margin": {"low": 0.0, "high": 0.5}},
        "optimizer": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "weight_decay": None},
        "data": {"batch_size": [32, 64]},
        "approach.x": [1],
    }
    found = read_space(space, fixed=["optimizer.lr"])
    assert found[0] == Parameter("approach", choices=("mlp", "aamp_mlp"))
    assert found[1] == Parameter("approach.margin", 0.0, 0.5)
    assert [one.key for one in found[2:]] == ["data.batch_size", "approach.x"]
    assert read_space({"approach": {"stages": {"*": {"epochs": [1, 2]}}}}, fixed=["approach.stages.head.epochs"]) == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"low": 2, "high": 1}, "no range"),
        ({"low": 0, "high": 1, "log": True}, "log needs low above 0"),
        ({"low": 0}, "high is missing"),
        ({"low": "a", "high": 1}, "a number is expected"),
        ({"low": 0, "high": float("inf")}, "no range"),
        ({"low": 0.0, "high": 1.0, "step": 2.0}, "step=2.0"),
        ({"low": 0, "high": 1, "logs": True}, "did you mean log?"),
        ({"choices": []}, "one or more"),
        ({"choices": [[1]]}, "each choice"),
        (0.1, "to fix it, write optimizer.lr=0.1"),
    ],
)
def test_mistakes_in_a_space_are_named(entry: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_space({"optimizer": {"lr": entry}})
    assert said in str(error.value)
    assert "optimizer.lr" in str(error.value)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_are_drawn_inside_and_the_same_from_the_same_trials(sampler: str) -> None:
    space = (
        Parameter("optimizer.lr", 1e-4, 1e-2, True),
        Parameter("seed", 1, 5),
        Parameter("data.max_broken", 0.0, 1.0, step=0.25),
        Parameter("name", choices=("x", None, True, 3)),
    )
    plan = Plan(("approach=mlp",), space, (Objective("val/top1", True),))
    trials: list[optuna.trial.FrozenTrial] = []
    for number in range(40):
        drawings = [Drawing(sampler, seed=0, startup_trials=5, directions=["maximize"]) for _ in range(2)]
        params, again = (drawing.draw(plan, number, trials) for drawing in drawings)
        assert params == again  # whoever draws, however often
        lr, whole, stepped, chosen = params.values()
        assert isinstance(lr, float)
        assert 1e-4 <= lr <= 1e-2
        assert whole in (1, 2, 3, 4, 5)
        assert stepped in (0, 0.25, 0.5, 0.75, 1)
        assert chosen in ("x", None, True, 3)
        distributions = {one.key: one.distribution() for one in space}
        trials.append(optuna.trial.create_trial(params=params, distributions=distributions, value=-abs(lr - 3e-3)))
        trials[-1].number = number
    late = [trial.params["optimizer.lr"] for trial in trials[-10:]]
    assert sum(abs(lr - 3e-3) < 1.5e-3 for lr in late) > 5 or sampler == "random"  # where the value is good


def test_what_the_command_line_gives_is_fixed() -> None:
    plan = planned("optimizer.lr=1e-3", "data.shots=4")
    assert "optimizer.lr" not in [one.key for one in plan.parameters]
    assert {"optimizer.lr=1e-3", "data.shots=4"} <= set(plan.base)


def test_the_command_line_replaces_a_range_by_a_list_and_a_list_by_a_range() -> None:
    said = (
        "sweep.space.approach.label_smoothing=[0.0,0.1]",
        "sweep.space.data.batch_size={low: 16, high: 64, step: 16}",
        "sweep.space.optimizer.lr={high: 1e-2}",  # of a range, only what is said
        "sweep.space.optimizer.weight_decay=null",
    )
    line = prepare("sweep", ["sweep=few_shot", "approach=mlp", *said], multirun=False)
    found = {one.key: one for one in read_plan(compose_config("sweep", line), line).parameters}
    assert found["approach.label_smoothing"] == Parameter("approach.label_smoothing", choices=(0.0, 0.1))
    assert found["data.batch_size"] == Parameter("data.batch_size", 16, 64, step=16)
    assert found["optimizer.lr"] == Parameter("optimizer.lr", 1e-4, 1e-2, True)
    assert "optimizer.weight_decay" not in found


@pytest.mark.slow
def test_a_trial_has_the_keys_of_its_own_approach_alone() -> None:
    keys = {approach: {one.key for one in planned(f"approach={approach}").present} for approach in ("mlp", "aamp_mlp")}
    assert keys["aamp_mlp"] - keys["mlp"] == {"approach.margin", "approach.scale"}
    plan = planned("approach=linear_probe")
    assert {one.key for one in plan.present} >= {"approach.C"}


def test_an_approach_that_is_searched_decides_what_else_is() -> None:
    line = ["++sweep.space.approach.choices=[mlp,aamp_mlp]"]
    plan = read_plan(compose_config("sweep", ["sweep=few_shot", *line]), ["sweep=few_shot", *line])
    drawing = Drawing("random", seed=1, startup_trials=5, directions=["maximize"])
    drawn = [drawing.draw(plan, number, []) for number in range(12)]
    assert {params["approach"] for params in drawn} == {"mlp", "aamp_mlp"}
    for params in drawn:
        rest = plan.overrides(params, plan.config(plan.chosen(params)))
        margin = params["approach"] == "aamp_mlp"
        assert ("approach.margin" in params) == margin == any(text.startswith("approach.margin=") for text in rest)
        assert "approach.stages.head.patience=8" in rest  # of the base: said of every stage


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("++sweep.space.optimizer.lrr={low: 1e-4, high: 1e-2}", "did you mean optimizer.lr?"),
        pytest.param("++sweep.space.approach.margn={low: 0, high: 0.1}", "did you mean approach.margin?", marks=SLOW),
        ("++sweep.space.approach.margin={low: 0.0, high: 3.0}", "margin=3"),
        ("++sweep.space.optimizer.lr={low: -1.0, high: 1.0, log: false}", "optimizer.lr=-1.0"),
        ("++sweep.space.data.batch_size=[0,32]", "batch_size=0"),
        pytest.param("++sweep.space.approach.label_smoothing.high=1.5", "label_smoothing=1.5", marks=SLOW),
        pytest.param("++sweep.space.approach.init={choices: [text, txt]}", "did you mean text?", marks=SLOW),
        ("++sweep.space.scheduler={choices: [cosine, plateu]}", "plateau"),
        ("sweep.objectives=[]", "sweep.objectives is empty"),
        ("sweep.objectives=[upwards val/top1]", "maximize val/top1"),
    ],
)
def test_an_unknown_key_and_a_value_that_cannot_be_are_refused_before_anything_runs(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        planned(override)
    assert said in str(error.value)


def test_directions() -> None:
    read = [Objective.read(text) for text in ("val/loss", "val/top1", "test/i2t_median_rank", "minimize val/top1")]
    assert [one.direction for one in read] == ["minimize", "maximize", "minimize", "minimize"]
    assert read[-1].metric == "val/top1"


@pytest.mark.slow
def test_sweeps_of_the_same_recipe_are_told_from_others() -> None:
    same = [planned("optimizer.lr=1e-3", "data.shots=4"), planned("data.shots=4", "optimizer.lr=1e-3")]
    others = [
        planned("optimizer.lr=1e-3"),
        planned("data.shots=4"),
        planned("data.shots=4", "sweep.objectives=[val/loss]"),
    ]
    assert same[0].described() == same[1].described()
    assert len({plan.described() for plan in (*same, *others)}) == 4
