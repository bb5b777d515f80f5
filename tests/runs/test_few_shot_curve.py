"""The few-shot curve: which runs are made, and the table that they leave together."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clipkit.errors import UserError
from clipkit.runs.command_line import prepare
from clipkit.runs.few_shot_page import write_curve
from clipkit.runs.few_shot_table import Curve, Job
from clipkit.runs.record import alone_in, release
from clipkit.runs.sweeps import together
from conftest import Command

EXPERIMENT = "experiment=few_shot_curve"
SMALL = (
    "data=synthetic", "data.num_images=160", "debug=fast", "trainer=cpu", "trainer.threads=1",
    "hydra.sweep.dir=curve",
)  # fmt: skip


def made(root: Path, job: Job, metrics: dict[str, float] | None = None, **about: object) -> None:
    """The folder that a run leaves."""
    folder = root / f"{job.approach}-{job.shots}-{job.seed}"
    folder.mkdir()
    said = [f"approach={job.approach}", f"data.shots={job.shots or 1}", f"seed={job.seed}", "data=emoji"]
    record = {"status": "finished", "overrides": said, "wall_s": 60.0, **about}
    (folder / "run.json").write_text(json.dumps(record))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))


def rounds(*overrides: str) -> list[list[str]]:
    """The multiruns that a command line becomes."""
    whole = together("train", prepare("train", ["-m", EXPERIMENT, *overrides], multirun=True))
    assert whole is not None
    return whole.rounds()


def swept(line: list[str]) -> dict[str, str]:
    pairs = dict(text.split("=", 1) for text in line if "=" in text)
    return {key: pairs[key] for key in ("approach", "data.shots", "seed")}


def test_means_deviations_and_intervals_of_hand_made_runs(tmp_path: Path) -> None:
    seen = np.array([0.61, 0.64, 0.7])
    jobs = [Job("zero_shot", None, 1), *(Job("mlp", 4, seed) for seed in (1, 2, 3))]
    made(tmp_path, jobs[0], {"test/seen/top1": 0.6, "test/unseen/top1": 0.5, "test/seen/i2t_recall@1": 0.1})
    for job, value in zip(jobs[1:], seen, strict=True):
        made(tmp_path, job, {"test/seen/top1": value, "test/unseen/top1": value / 2, "test/seen/f1_weighted": 0.5})
    write_curve(Curve.read(tmp_path, jobs), notes=[], command="again")
    table = pd.read_csv(tmp_path / "few_shot_curve.csv").set_index(["approach", "part", "metric"])
    row = table.loc[("mlp", "test/seen", "top1")]
    low, high = stats.t.interval(0.95, 2, loc=seen.mean(), scale=stats.sem(seen))
    assert row[["mean", "std", "low_95", "high_95"]].tolist() == pytest.approx(
        [seen.mean(), seen.std(ddof=1), low, high]
    )
    assert (row["n"], row["planned"], row["seeds"], row["shots"]) == (3, 3, "1 2 3", 4)
    assert table.loc[("mlp", "test/unseen", "top1"), "mean"] == pytest.approx(seen.mean() / 2)
    assert table.loc[("zero_shot", "test/seen", "top1"), "mean"] == 0.6
    assert "i2t_recall@1" not in table.index.get_level_values("metric")
    page = (tmp_path / "few_shot_curve.html").read_text()
    assert "0.650 ± 0.046" in page
    assert (tmp_path / "few_shot_curve.png").stat().st_size > 10_000


def test_what_chose_the_weights_is_no_curve_unless_there_is_nothing_else(tmp_path: Path) -> None:
    for name, metrics in (("tested", {"test/top1": 0.5, "val/top1": 0.9}), ("untested", {"val/top1": 0.9})):
        (tmp_path / name).mkdir()
        made(tmp_path / name, Job("mlp", 4, 1), metrics)
    places = [Curve.read(tmp_path / name, [Job("mlp", 4, 1)]).places for name in ("tested", "untested")]
    assert places == [["test"], ["val"]]


def test_failed_and_missing_runs_are_named_and_counted(tmp_path: Path) -> None:
    planned = [Job("mlp", shots, seed) for shots in (1, 2) for seed in (1, 2, 3)]
    for job in planned[:4]:
        made(tmp_path, job, {"test/top1": 0.1 * job.seed})
    made(tmp_path, planned[4], status="failed", error="UserError: <no> luck\nwith this")
    curve = Curve.read(tmp_path, planned)
    assert [(outcome.job, outcome.trouble.splitlines()[0]) for outcome in curve.troubles] == [
        (planned[4], "failed: UserError: <no> luck"),
        (planned[5], "not begun"),
    ]
    header, rows = curve.grid("test")
    assert header == ["", "1 shot", "2 shots"]
    assert rows == [["mlp", "0.200 ± 0.100", "0.100 (1 of 3)"]]
    write_curve(curve, notes=[], command="again")
    page = (tmp_path / "few_shot_curve.html").read_text()
    assert "mlp, 2 shots, seed 2: failed: UserError: &lt;no&gt; luck" in page
    assert "mlp, 2 shots, seed 3: not begun" in page
    assert "4 of 6 runs finished" in page


def test_a_shot_without_any_finished_run_is_no_number(tmp_path: Path) -> None:
    planned = [Job("mlp", 1, 1), Job("mlp", 2, 1)]
    made(tmp_path, planned[0], {"test/top1": 0.5})
    curve = Curve.read(tmp_path, planned)
    assert curve.grid("test")[1] == [["mlp", "0.500", "– (0 of 1)"]]
    empty = curve.table().set_index("shots").loc["2"]
    assert (empty["n"], empty["planned"], empty["seeds"]) == (0, 1, "")
    assert np.isnan(empty["mean"])


def test_runs_of_another_command_in_the_same_folder_join_the_table(tmp_path: Path) -> None:
    made(tmp_path, Job("mlp", 1, 1), {"test/top1": 0.5})
    made(tmp_path, Job("lora", 1, 1), {"test/top1": 0.7})
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "run.json").write_text("{torn")
    curve = Curve.read(tmp_path, [Job("mlp", 1, 1)])
    assert curve.grid("test")[1] == [["lora", "0.700"], ["mlp", "0.500"]]
    assert curve.troubles == []


def test_runs_on_other_data_are_not_averaged_silently(tmp_path: Path) -> None:
    made(tmp_path, Job("mlp", 1, 1), {"test/top1": 0.5})
    made(
        tmp_path,
        Job("mlp", 1, 2),
        {"test/top1": 0.7},
        overrides=["approach=mlp", "data.shots=1", "seed=2", "data=cars"],
    )
    assert Curve.read(tmp_path, []).differing_choices() == ["data=cars", "data=emoji"]


def test_zero_shot_is_one_run_where_the_test_pictures_are_fixed() -> None:
    first, second = rounds("approach=contrastive,zero_shot")
    assert swept(first) == {"approach": "zero_shot", "data.shots": "1", "seed": "1"}
    assert swept(second) == {"approach": "contrastive", "data.shots": "1,2,4,8,16", "seed": "1,2,3"}


def test_zero_shot_is_one_run_a_seed_where_seeds_choose_the_test_pictures(tmp_path: Path) -> None:
    first, second = rounds("data=folder", f"data.root={tmp_path}", "data.shots=4,2", "seed=5,7", "approach=contrastive")
    assert swept(first) == {"approach": "zero_shot", "data.shots": "2", "seed": "5,7"}
    assert swept(second) == {"approach": "contrastive", "data.shots": "2,4", "seed": "5,7"}
    assert {text for text in first if text.startswith("hydra.sweep.dir")} == {
        text for text in second if text.startswith("hydra.sweep.dir")
    }


def test_a_backbone_that_cannot_do_zero_shot_has_no_such_line() -> None:
    (only,) = rounds("backbone=tiny", "seed=1", "data.shots=1", "approach=contrastive")
    assert swept(only) == {"approach": "contrastive", "data.shots": "1", "seed": "1"}


def test_what_an_approach_takes_is_not_asked_of_zero_shot() -> None:
    first, second = rounds("approach=contrastive", "approach.targets=soft", "optimizer.lr=0.1")
    assert not [text for text in first if text.startswith("approach.")]
    assert "approach.targets=soft" in second
    assert "optimizer.lr=0.1" in first


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.shots=1,x",), "data.shots=x: a whole number"),
        (("approach=contrastive,aamp_mpl",), "approach=aamp_mpl"),
        (("data=coco", "data.root=."), "has no labels"),
        (("data=emoji,synthetic",), "several values of data: one curve varies approach, data.shots, seed alone"),
        (("data.split_seed=1,2",), "say seed=… instead"),
    ],
)
def test_what_cannot_be_a_curve_is_refused_before_any_run(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        rounds(*overrides)


def test_without_m_the_command_says_what_to_add() -> None:
    with pytest.raises(UserError, match="add -m") as caught:
        prepare("train", [EXPERIMENT, "seed=1"], multirun=False)
    assert "data.shots=1,2,4,8,16" in str(caught.value)
    assert "seed=…" not in str(caught.value)
    one = [EXPERIMENT, "approach=contrastive", "seed=1", "data.shots=2"]
    assert prepare("train", one, multirun=False) == one  # as one job of the curve is started again


def test_a_multirun_with_a_failed_job_and_its_continuation(clipkit: Command) -> None:
    """Two shots × two seeds; one job finds its folder taken; `resume=auto` makes that one alone."""
    line = ("train", "-m", EXPERIMENT, *SMALL, "backbone=tiny", "approach=contrastive", "data.shots=1,2", "seed=1,2")
    folder = clipkit.folder / "curve"
    taken = alone_in(folder / "contrastive-2-shots-seed-1")
    done = clipkit(*line)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "another process is at work" in done.stderr
    assert "contrastive, 2 shots, seed 1: failed: another process is at work" in done.stdout
    assert "(1 of 2)" in done.stdout
    assert "no zero-shot line" in done.stdout  # its towers were never trained together
    names = sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    assert names == [
        "contrastive-1-shots-seed-1", "contrastive-1-shots-seed-2", "contrastive-2-shots-seed-2",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    release(taken)
    done = clipkit(*line, "resume=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = pd.read_csv(folder / "few_shot_curve.csv").set_index(["approach", "shots", "metric"])
    for shots in (1, 2):
        values = [
            json.loads((folder / f"contrastive-{shots}-shots-seed-{seed}/metrics.json").read_text())["test/top1"]
            for seed in (1, 2)
        ]
        row = table.loc[("contrastive", shots, "top1")]
        assert row[["mean", "std"]].tolist() == pytest.approx([np.mean(values), np.std(values, ddof=1)])
        assert (row["n"], row["planned"]) == (2, 2)
    manifests = [json.loads((folder / f"contrastive-1-shots-seed-{seed}/manifest.json").read_text()) for seed in (1, 2)]
    assert manifests[0]["splits"]["train"] != manifests[1]["splits"]["train"]
    page = (folder / "few_shot_curve.html").read_text()
    targets = re.findall(r'<a href="([^"]+)"', page)
    assert len(targets) == 4
    assert all((folder / target).is_file() for target in targets)


@pytest.mark.slow
def test_zero_shot_is_the_level_line_of_a_multirun(clipkit: Command) -> None:
    line = ("train", "-m", EXPERIMENT, *SMALL, "approach=mlp", "data.shots=2", "seed=1,2")
    done = clipkit(*line)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = clipkit.folder / "curve"
    runs = [folder / f"zero_shot-seed-{seed}/metrics.json" for seed in (1, 2)]  # here seeds choose the test pictures
    values = [json.loads(path.read_text())["test/top1"] for path in runs]
    table = pd.read_csv(folder / "few_shot_curve.csv").set_index(["approach", "metric"])
    row = table.loc[("zero_shot", "top1")]
    assert (row["mean"], row["n"], row["planned"]) == (pytest.approx(np.mean(values)), 2, 2)
    assert "mlp-2-shots-seed-1/report.html" in (folder / "few_shot_curve.html").read_text()
