"""A run that was stopped, in good order or not, ends exactly like one that never was."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from conftest import TINY, Command

# Dropout, augmentation, two stages of training and several batches an epoch: all that could go astray.
RECIPE = (
    *TINY,
    "approach.stages.towers.epochs=6",
    "approach.stages.towers.batch_size=16",
    "data.augmentation=affine_color",
    "backbone/projection=linear_mlp",
    "backbone.projection.embed_dim=64",
    "evaluators=[retrieval]",
    "report=false",
)


def start_and_signal(clipkit: Command, number: int, *, at_epoch: int, extra: tuple[str, ...] = ()) -> tuple[int, str]:
    """Start the recipe as `name=stopped` and send a signal once `metrics.csv` or a checkpoint shows the epoch."""
    process = clipkit.start("train", *RECIPE, "name=stopped", *extra)
    checkpoint = clipkit.folder / "outputs/train/stopped/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.is_file() and epoch_of(checkpoint) >= at_epoch:
            process.send_signal(number)
            break
        time.sleep(0.01)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def epoch_of(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True)["epoch"])
    except (OSError, RuntimeError, EOFError):
        return -1


def losses(folder: Path) -> list[str]:
    """The loss of every step and epoch, and validation, as written in `metrics.csv`."""
    kept = ("train/loss_step", "train/loss_epoch", "train/contrastive", "val/")
    return [row for row in (folder / "metrics.csv").read_text().splitlines() if any(name in row for name in kept)]


def results(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """The metrics as written, and the weights of the last checkpoint."""
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return (folder / "metrics.json").read_text(), weights


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The same recipe, never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    done = Command(folder, cache)("train", *RECIPE, "name=straight")
    assert done.returncode == 0, done.stderr
    return folder / "outputs/train/straight"


def assert_same(straight: Path, other: Path) -> None:
    (metrics, weights), (other_metrics, other_weights) = results(straight), results(other)
    assert metrics == other_metrics
    assert weights.keys() == other_weights.keys()
    different = [name for name in weights if not torch.equal(weights[name], other_weights[name])]
    assert different == []
    assert losses(straight) == losses(other)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_says_how_to_go_on_and_the_resumed_run_is_the_same_to_the_bit(
    clipkit: Command, straight: Path, number: int, status: int
) -> None:
    code, output = start_and_signal(clipkit, number, at_epoch=2)
    assert code == status, output
    assert "Traceback" not in output
    said = re.search(r"Continue with: python -m clipkit\.train (resume=\S+)", output)
    assert said is not None, output
    folder = clipkit.folder / "outputs/train/stopped"
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    done = clipkit("train", said[1])
    assert done.returncode == 0, done.stderr
    assert_same(straight, folder)


def test_a_killed_run_resumed_by_the_same_command_is_the_same_to_the_bit(clipkit: Command, straight: Path) -> None:
    extra = ("resume=auto", "trainer.checkpoint_minutes=0")  # a checkpoint after every step
    code, _ = start_and_signal(clipkit, signal.SIGKILL, at_epoch=1, extra=extra)
    assert code == -signal.SIGKILL
    done = clipkit("train", *RECIPE, "name=stopped", *extra)
    assert done.returncode == 0, done.stderr
    assert_same(straight, clipkit.folder / "outputs/train/stopped")


def test_a_torn_checkpoint_falls_back_to_the_one_before(clipkit: Command, straight: Path) -> None:
    start_and_signal(clipkit, signal.SIGKILL, at_epoch=3)
    last = clipkit.folder / "outputs/train/stopped/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    done = clipkit("train", "resume=outputs/train/stopped")
    assert done.returncode == 0, done.stderr
    assert "last.ckpt is not a readable checkpoint" in done.stdout
    assert_same(straight, clipkit.folder / "outputs/train/stopped")


def test_resuming_a_finished_run_changes_nothing_and_prints_its_numbers(clipkit: Command, tiny_run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny_run.rglob("*") if file.is_file()}
    done = clipkit("train", f"resume={tiny_run}")
    assert done.returncode == 0, done.stderr
    assert "recall@1" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in tiny_run.rglob("*") if file.is_file()} == before


def test_a_folder_with_a_run_is_refused_and_left_alone(clipkit: Command, tiny_run: Path) -> None:
    before = (tiny_run / "run.json").read_text()
    done = clipkit("train", *TINY, f"hydra.run.dir={tiny_run}")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (tiny_run / "run.json").read_text() == before


@pytest.mark.slow
def test_a_run_is_not_continued_while_it_is_at_work(clipkit: Command) -> None:
    process = clipkit.start("train", *RECIPE, "name=stopped", "approach.stages.towers.epochs=500")
    folder = clipkit.folder / "outputs/train/stopped"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        done = clipkit("train", "resume=outputs/train/stopped")
        assert done.returncode == 2
        assert "another process is at work in" in done.stderr
        assert process.poll() is None
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
    finally:
        process.kill()
        process.communicate()


def test_resuming_with_another_recipe_is_refused(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("train", f"resume={tiny_run}", "approach.targets=soft")
    assert done.returncode == 2
    assert "approach.targets: multi_positive → soft" in done.stderr


def test_resuming_what_is_not_there_is_refused(clipkit: Command) -> None:
    done = clipkit("train", "resume=no/such/run")
    assert done.returncode == 2
    assert "no such run folder" in done.stderr


@pytest.mark.slow
def test_two_stops_in_a_row_still_give_the_same_result(clipkit: Command, straight: Path) -> None:
    start_and_signal(clipkit, signal.SIGTERM, at_epoch=1)
    folder = clipkit.folder / "outputs/train/stopped"
    process = subprocess.Popen(
        clipkit.line("train", "resume=outputs/train/stopped"), cwd=clipkit.folder, env=clipkit.environment
    )
    while process.poll() is None and epoch_of(folder / "checkpoints/last.ckpt") < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert clipkit("train", "resume=outputs/train/stopped").returncode == 0
    assert_same(straight, folder)
