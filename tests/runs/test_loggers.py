"""Weights & Biases (offline) and TensorBoard get what `metrics.csv`, `metrics.json`, `tables/` and `plots/` have.

One multirun of two jobs with both trackers is looked at by all tests; what was written is read back from the files.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from wandb_files import config, history, metric_axes, offline_folders, records, run_record, summary

from conftest import TINY, Command

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "a-secret-that-nobody-may-read"
BOTH = (
    "logger.loggers=[{_target_: clipkit.runs.tensorboard_tracking.TensorBoardTracker},"
    "{_target_: clipkit.runs.wandb_tracking.WandbTracker, artifact: true, tags: [night], notes: 'why, and how'}]"
)
STAGES = ("approach.stages.heads.epochs=2", "approach.stages.heads.train.image_groups=all", "report=false")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> list[Path]:
    """Two jobs of a multirun, of two stages each, that differ in their seeds."""
    clipkit = Command(tmp_path_factory.mktemp("followed"), cache)
    arguments = (*TINY, *STAGES, "approach.stages.towers.epochs=3", "approach.stages.towers.batch_size=64", BOTH)
    secrets = {"WANDB_API_KEY": KEY, "MY_TOKEN": SECRET}
    done = clipkit("train", "-m", *arguments, "seed=0,1", "hydra.sweep.dir=outputs/train/many", **secrets)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "wandb" in line.lower() or "w&b" in line.lower()]
    assert len(lines) == 2, lines  # one a job, and nothing of wandb's own
    assert done.stderr == ""
    return [clipkit.folder / "outputs/train/many/0", clipkit.folder / "outputs/train/many/1"]


@pytest.fixture(scope="module")
def job(jobs: list[Path]) -> Path:
    return jobs[0]


@pytest.fixture(scope="module")
def part(job: Path) -> Path:
    (folder,) = offline_folders(job)
    return folder


def points(job: Path) -> set[tuple[str, int, float]]:
    """Every number of `metrics.csv` with its place on one axis, worked out from the stages' own steps."""
    found, start, last, stage = set(), 0, -1, None
    for row in csv.DictReader((job / "metrics.csv").open()):
        if not row["step"]:
            continue
        if row["stage"] != stage:
            start, stage = last + 1, row["stage"]
        last = max(last, start + int(row["step"]))
        found.add((row["name"], start + int(row["step"]), float(row["value"])))
    return found


def metrics_of(job: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((job / "metrics.json").read_text())
    return found


def test_tensorboard_has_the_numbers_of_both_files_and_no_others(job: Path) -> None:
    events = accumulated(job)
    written = {
        (name, event.step, event.value)
        for name in events.Tags()["scalars"]
        if name not in ("stage", "epoch")
        for event in events.Scalars(name)
    }
    end = max(at for _, at, _ in points(job)) + 1
    final = {(name, end, value) for name, value in metrics_of(job).items()}
    assert written == {(name, at, float(np.float32(value))) for name, at, value in points(job) | final}
    assert [(event.step, event.value) for event in events.Scalars("stage")] == [(0, 1), (2, 2)]
    assert [event.value for event in events.Scalars("epoch")] == [0, 1, 0, 1, 2]


def test_tensorboard_has_pictures_tables_the_configuration_and_a_layout(job: Path) -> None:
    events = accumulated(job)
    plots = {f"plots/{file.stem}" for file in (job / "plots").glob("*.png")}
    assert plots | {"examples"} == set(events.Tags()["images"])
    tensors = set(events.Tags()["tensors"])
    tables = {f"tables/{file.stem}/text_summary" for file in (job / "tables").glob("*.csv")}
    assert tables | {"tables/examples/text_summary", "configuration/text_summary"} <= tensors
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    told = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))
    assert told["optimizer"]["lr"] == yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["lr"]
    assert "custom_scalars__config__" in tensors


def accumulated(job: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(job / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_wandb_knows_the_whole_configuration_and_how_the_run_was_made(job: Path, part: Path) -> None:
    told, about = config(part), json.loads((job / "run.json").read_text())
    written = yaml.safe_load((job / "config.yaml").read_text())
    assert {key: told[key] for key in written} == written
    assert told["choices"]["approach"] == "contrastive"
    assert told["choices"]["backbone"] == "tiny"
    assert told["choices"]["data"] == "synthetic"
    assert told["made_with"]["git_commit"] == about["git_commit"]
    assert told["made_with"]["versions"] == about["versions"]


def test_wandb_draws_every_number_over_one_axis_through_all_stages(job: Path, part: Path) -> None:
    rows = history(part)
    places = [row["_step"] for row in rows]
    assert places == sorted(set(places))
    assert [row["optimiser_step"] for row in rows] == places
    known = {name for name, _, _ in points(job)}
    drawn = {(name, row["optimiser_step"], row[name]) for row in rows for name in row if name in known}
    assert drawn == points(job)
    assert [row.get("stage") for row in rows] == [1, 1, *[2] * 6, None]  # the last holds tables and pictures
    assert [row.get("epoch") for row in rows][:-1] == [0, 1, 0, 0, 1, 1, 2, 2]
    axes = metric_axes(part)
    assert {axes[name] for name in known} == {"optimiser_step"}


def test_wandb_sums_up_final_best_and_last(job: Path, part: Path) -> None:
    found = summary(part)
    assert {name: found[name] for name in metrics_of(job)} == metrics_of(job)
    validated: dict[str, list[float]] = {}
    for name, _, value in sorted(points(job), key=lambda point: point[1]):
        if name.startswith("val/"):
            validated.setdefault(name, []).append(value)
    assert len(validated["val/loss"]) == 5  # epochs
    for name, values in validated.items():
        assert found[f"best/{name}"] == (min(values) if name == "val/loss" else max(values))
        assert found[f"last/{name}"] == values[-1]
    assert found["status"] == "finished"
    assert found["wall_s"] > 0


def test_wandb_has_the_tables_and_the_confusion_matrix_as_a_chart_of_its_own(job: Path, part: Path) -> None:
    for file in (job / "tables").glob("*.csv"):
        ours = pd.read_csv(file)
        theirs = table(part, f"tables/{file.stem}")
        assert len(theirs["data"]) == min(len(ours), 1000), file.stem
        assert theirs["columns"] == [column.removesuffix(".1") for column in ours.columns]
    shares = pd.read_csv(job / "tables/test-confusion.csv")
    counts = {(actual, predicted): n for actual, predicted, n in table(part, "charts/test-confusion_table")["data"]}
    assert len(counts) == len(shares) ** 2
    for _, row in shares.iterrows():
        for name in shares["class"]:
            expected = 0 if row["pictures"] == 0 else row[name] * row["pictures"]
            assert counts[row["class"], name] == pytest.approx(expected)
    chart = config(part)["_wandb"]["visualize"]["charts/test-confusion"]
    assert chart["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"


def test_wandb_has_pictures_with_what_the_model_answers(job: Path, part: Path) -> None:
    (artifact,) = [r.artifact for r in records(part) if r.HasField("artifact") and "examples" in r.artifact.name]
    kept = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert all(job in path.parents for path in kept.values())  # nothing of the run lies elsewhere
    shown = json.loads(kept["tables/examples.table.json"].read_text())
    assert shown["columns"] == ["picture", "image", "label", "answer", "probability", "caption", "finds", "cosine"]
    assert len(shown["data"]) == 32
    classes = set(pd.read_csv(job / "tables/test-confusion.csv")["class"])
    for picture, _, label, answer, probability, _, finds, cosine in shown["data"]:
        assert max(Image.open(kept[picture["path"]]).size) <= 112
        assert kept[picture["path"]].stat().st_size < 5000
        assert {label, answer} <= classes
        assert 0 < probability <= 1
        assert finds in [row[6] for row in shown["data"]]
        assert -1 <= cosine <= 1
    pictures = {re.sub(r"_\d+_[0-9a-f]+$", "", file.stem) for file in (part / "files/media/images/plots").iterdir()}
    assert pictures == {file.stem for file in (job / "plots").glob("*.png")}


def test_wandb_gets_the_model_as_an_artifact(job: Path, part: Path) -> None:
    (artifact,) = [r.artifact for r in records(part) if r.HasField("artifact") and r.artifact.type == "model"]
    assert set(artifact.aliases) == {"latest", "best"}
    assert json.loads(artifact.metadata) == metrics_of(job)
    kept = {entry.path for entry in artifact.manifest.contents}
    assert kept == {str(f.relative_to(job / "model")) for f in (job / "model").rglob("*") if f.is_file()}


def test_jobs_of_a_multirun_are_runs_of_one_group(jobs: list[Path]) -> None:
    told = [run_record(offline_folders(job)[0]) for job in jobs]
    assert {one.run_group for one in told} == {"many"}
    assert {one.job_type for one in told} == {"train"}
    assert [one.display_name for one in told] == ["contrastive-tiny-synthetic 0", "contrastive-tiny-synthetic 1"]
    assert [list(one.tags) for one in told] == [["night"], ["night"]]
    assert {one.notes for one in told} == {"why, and how"}
    assert [one.run_id for one in told] == [json.loads((job / "run.json").read_text())["wandb_id"] for job in jobs]
    assert len({one.run_id for one in told}) == 2


def test_no_secret_stands_in_any_file(jobs: list[Path]) -> None:
    files = [file for file in jobs[0].parent.rglob("*") if file.is_file()]
    assert len(files) > 50
    for secret in (KEY, SECRET):
        assert [file for file in files if secret.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("key", ["++logger.api_key", "+logger.loggers.0.api_key"])
def test_a_key_has_no_place_in_the_configuration(clipkit: Command, key: str) -> None:
    done = clipkit("train", *TINY, "logger=wandb", f"{key}={KEY}")
    assert done.returncode == 2
    assert "api_key" in done.stderr
    assert not (clipkit.folder / "outputs").exists()


def table(part: Path, name: str) -> dict[str, Any]:
    """A W&B table as the run's file has it."""
    (path,) = [row[f"{name}/path"] for row in history(part) if f"{name}/path" in row]
    found: dict[str, Any] = json.loads((part / "files" / path).read_text())
    return found
