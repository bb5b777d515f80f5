"""A wrong command line gets one message that names every mistake and the nearest valid name, at once."""

import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from clipkit.errors import UserError
from clipkit.runs.command_line import literal, prepare
from clipkit.runs.validate import check_command_line
from conftest import Command


def message(*overrides: str, command: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        check_command_line(command, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data=emojj", "did you mean data=emoji?"),
        ("backbone=lite0_minilmm", "did you mean backbone=lite0_minilm?"),
        ("backbone/projection=linaer", "did you mean backbone/projection=linear?"),
        ("seeed=3", "did you mean seed?"),
        ("data.max_brokn=0.1", "did you mean data.max_broken?"),
        ("approach.stages.heads.epoch=3", "did you mean approach.stages.heads.epochs?"),
        ("approach.stages.heads.optimizer.lrr=3", "did you mean optimizer.lr?"),
        ("seed=abc", "a whole number expected"),
        ("approach.stages.heads.epochs=many", "a whole number expected"),
        ("optimizer.lr=fast", "a number expected"),
        ("report=3", "true or false expected"),
        ("data.max_broken=2", "a share is expected"),
        ("approach.targets=soof", "did you mean soft?"),
        ("approach.positives=[concept]", "one of group, caption, class"),
        ("data.augmentation=affine_colour", "did you mean affine_color?"),
        ("backbone.image.pooled_stages=x", "a whole number expected"),
        ("trainer.limit_train_batches=[1]", "a number expected"),
        ("garbage", "is not key=value"),
        ("seed=[1", "is not key=value"),
        ("data=pairs", "data.file is needed"),
        ("data=folder", "data.root is needed"),
        ("backbone=checkpoint", "backbone.path is needed"),
    ],
)
def test_each_mistake_is_named_with_its_mend(override: str, expected: str) -> None:
    assert expected in message(override)


def test_all_mistakes_are_listed_together() -> None:
    text = message("data=emojj", "optimizer=adm", "seeed=3", "seed=abc", "approach.targets=soof")
    for part in ("5 mistakes", "data=emoji", "optimizer=adam", "seed?", "whole number", "soft?"):
        assert part in text


def test_missing_files_are_reported_together_with_wrong_keys() -> None:
    text = message("data=pairs", "data.file=/no/such.csv", "seeed=1")
    assert "/no/such.csv: no such file" in text
    assert "seed?" in text


def test_wrong_values_inside_a_sweep_are_found() -> None:
    assert "emoji" in message("data=emoji,emojj")
    assert "whole number" in message("seed=0,1,x")


def test_wrong_combinations_inside_a_sweep_are_found() -> None:
    assert "needs aligned" in message("approach=contrastive,zero_shot", "backbone=lite0_minilm")


@pytest.mark.parametrize("approach", ["zero_shot", "aamp_mlp", "contrastive_finetune", "lora"])
def test_towers_that_were_never_trained_together_are_refused_with_the_ways_out(approach: str) -> None:
    said = message(f"approach={approach}", "backbone=lite0_minilm")
    for way_out in ("backbone=emoji_clip", "backbone=checkpoint", "hf_clip"):
        assert way_out in said


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("seed=0,1,2",),
        ("optimizer.group_lr.image=1e-4",),
        ("approach.stages.heads.optimizer.factory.betas=[0.9,0.999]",),
        ("approach.stages.towers.train.image_groups=all",),
        ("approach=zero_shot", "backbone=emoji_clip"),
        ("optimizer=sgd", "scheduler=plateau", "data.batch_size=32"),
        ("backbone.image.name=resnet18", "backbone.image.fold_batchnorm=false"),
        ("data.limit=10", "trainer.threads=1", "debug=fast"),
        ("logger=wandb", "logger.offline=true"),
        ("experiment=emoji_clip",),
        ("~data.augmentation",),
    ],
)
def test_valid_command_lines_pass(overrides: tuple[str, ...]) -> None:
    check_command_line("train", overrides)


def test_keys_that_a_stage_may_take_reach_hydra() -> None:
    given = ["approach.stages.heads.optimizer.factory.betas=[0.9,0.999]", "seed=1"]
    assert check_command_line("train", given) == [f"++{given[0]}", "seed=1"]


def test_an_unknown_name_exits_with_2_and_no_traceback_in_3_seconds(clipkit: Command) -> None:
    clipkit.warm = False
    clipkit("train", "--help")  # the first start reads everything from disk
    start = time.monotonic()
    done = clipkit("train", "data=emojj")
    assert time.monotonic() - start < 3
    assert done.returncode == 2
    assert "data=emoji" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clipkit.folder / "outputs").exists()


@pytest.mark.parametrize(("flag", "part"), [(("--help",), "lite0_minilm"), (("--cfg", "job"), "tf_efficientnet_lite0")])
def test_help_and_configuration_answer_in_3_seconds(clipkit: Command, flag: tuple[str, ...], part: str) -> None:
    clipkit.warm = False
    clipkit("train", "--help")
    start = time.monotonic()
    done = clipkit("train", *flag)
    assert time.monotonic() - start < 3
    assert done.returncode == 0
    assert part in done.stdout


def test_help_of_a_command_lists_only_its_groups(clipkit: Command) -> None:
    text = clipkit("evaluate", "--help").stdout
    assert "data " in text
    assert "approach" not in text


def test_a_sweep_of_ones_own_has_its_base(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/mine.yaml").write_text("base: [approach=gda, data.shots=4]\n")
    line = prepare("sweep", ["--config-dir", str(tmp_path), "sweep=mine", "data.shots=2"], multirun=False)
    assert line == ["--config-dir", str(tmp_path), "approach=gda", "sweep=mine", "data.shots=2"]


def test_a_resumed_run_has_its_own_options_again(tmp_path: Path) -> None:
    record = '{"overrides": ["experiment=mine", "name=x"], "config_dirs": ["/configs"]}'
    (tmp_path / "run.json").write_text(record)
    line = prepare("train", [f"resume={tmp_path}"], multirun=False)
    assert line[:3] == ["--config-dir", "/configs", "experiment=mine"]
    assert "--config-dir=/moved" in prepare("train", [f"resume={tmp_path}", "--config-dir=/moved"], multirun=False)
    assert "/configs" not in prepare("train", [f"resume={tmp_path}", "--config-dir=/moved"], multirun=False)


def test_free_text_is_taken_literally(clipkit: Command) -> None:
    done = clipkit("evaluate", "model=no such, model: really {x}")
    assert done.returncode == 2
    assert "no such, model: really {x}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("query=one dog, asleep: yes {x} $5", "one dog, asleep: yes {x} $5"),
        ("query=[a dog,a cat]", ["a dog", "a cat"]),
        ("labels=a cat, a dog", ["a cat", "a dog"]),
        ("labels=[a cat,'a dog, asleep']", ["a cat", "a dog, asleep"]),
        ("templates={}", "{}"),
        ("templates=a photo of a {}, outside", "a photo of a {}, outside"),
        ('templates=["{}","a {label}"]', ["{}", "a {label}"]),
        ("images=my, pictures/*.png", "my, pictures/*.png"),
        ("images=[a b.png,c.jpg]", ["a b.png", "c.jpg"]),
        ("query_image=it's.png", "it's.png"),
        ("index=a=b", "a=b"),
    ],
)
def test_what_people_ask_is_taken_as_it_is_typed(typed: str, value: str | list[str]) -> None:
    parsed = OverridesParser.create().parse_override(literal(typed)).value()
    texts = [getattr(part, "text", part) for part in (parsed if isinstance(parsed, list) else [parsed])]
    assert texts == (value if isinstance(value, list) else [value])
