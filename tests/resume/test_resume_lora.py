"""Low-rank updates: a run that was killed ends exactly like one that never was; two processes learn what one does."""

import json
import signal
import time
from pathlib import Path

import pytest
from test_resume import assert_same, epoch_of

from clipkit.models.folder import load_model
from conftest import Command

RECIPE = (
    "approach=lora",
    "approach.iterations_per_shot=6",
    "approach.stages.lora.batch_size=16",
    "approach.stages.lora.optimizer.lr=1e-2",
    "backbone=checkpoint",
    "data=synthetic",
    "data.num_images=160",
    "data.augmentation=affine_color",
    "trainer=cpu",
    "trainer.threads=1",
    "report=false",
)


@pytest.fixture(scope="module")
def recipe(tiny_run: Path) -> tuple[str, ...]:
    return (*RECIPE, f"backbone.path={tiny_run}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, cache: Path, recipe: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    done = Command(folder, cache)("train", *recipe, "name=straight")
    assert done.returncode == 0, done.stderr
    assert "about 6 iterations a shot" in " ".join(done.stdout.split())
    return folder / "outputs/train/straight"


@pytest.mark.slow
def test_a_killed_run_resumed_by_the_same_command_is_the_same_to_the_bit(
    clipkit: Command, straight: Path, recipe: tuple[str, ...]
) -> None:
    command = (*recipe, "name=stopped", "resume=auto", "trainer.checkpoint_minutes=0")  # a checkpoint after every step
    process = clipkit.start("train", *command)
    folder = clipkit.folder / "outputs/train/stopped"
    deadline = time.monotonic() + 120
    while process.poll() is None and epoch_of(folder / "checkpoints/last.ckpt") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = clipkit("train", *command)
    assert done.returncode == 0, done.stderr
    assert "resumed: stage lora" in done.stdout
    assert_same(straight, folder)
    assert (folder / "model/model.safetensors").read_bytes() == (straight / "model/model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_is_saved_is_an_ordinary_model_with_its_classifier(straight: Path, tiny_run: Path) -> None:
    model, start = load_model(straight), load_model(tiny_run)
    assert model.encoder.state_dict().keys() == start.encoder.state_dict().keys()
    assert model.classifier is not None
    checkpoint, weights = straight / "checkpoints/last.ckpt", straight / "model/model.safetensors"
    assert checkpoint.stat().st_size < 0.5 * weights.stat().st_size


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(clipkit: Command, recipe: tuple[str, ...]) -> None:
    """Without dropout, which each draws for itself."""
    plain = (*recipe, "approach.dropout=0", "approach.iterations_per_shot=1", "data.augmentation=none")
    done = clipkit("train", *plain, "name=one")
    assert done.returncode == 0, done.stderr
    for one in clipkit.together(2, *plain, "name=two"):
        assert one.returncode == 0, one.stderr
    runs = clipkit.folder / "outputs/train"
    numbers = [json.loads((runs / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert numbers[0].keys() == numbers[1].keys()
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)
