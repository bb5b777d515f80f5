"""Weights & Biases (offline) and TensorBoard get the numbers and pictures that `metrics.csv` and `plots/` have."""

import json
from pathlib import Path

import pytest

from conftest import TINY, Command

RECIPE = (*TINY, "approach.stages.towers.epochs=2", "name=x")


def train(clipkit: Command, *arguments: str) -> Path:
    done = clipkit("train", *RECIPE, *arguments)
    assert done.returncode == 0, done.stderr
    return clipkit.folder / "outputs/train/x"


def test_tensorboard_has_the_curves_the_final_numbers_and_the_pictures(clipkit: Command) -> None:
    folder = train(clipkit, "logger=tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    metrics = json.loads((folder / "metrics.json").read_text())
    scalars = events.Tags()["scalars"]
    assert {"train/loss_step", "val/recall", *metrics} <= set(scalars)
    assert len(events.Scalars("perf/waiting_for_data")) == len(events.Scalars("perf/pairs_per_s")) == 2  # epochs
    for name, value in metrics.items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)
    pictures = {f"plots/{file.stem}" for file in (folder / "plots").glob("*.png")}
    assert pictures == set(events.Tags()["images"])


def test_wandb_works_offline_without_an_account(clipkit: Command) -> None:
    clipkit.warm = False  # wandb starts processes of its own, and asks what the main module is
    folder = train(clipkit, "logger=wandb", "logger.offline=true")
    runs = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    content = runs[0].read_bytes()
    for name in ("train/loss_step", "perf/pairs_per_s", "perf/waiting_for_data", "test/i2t_recall@1"):
        assert name.encode() in content
    pictures = {file.stem.split("_")[0] for file in (folder / "wandb").rglob("media/images/plots/*.png")}
    assert {"training", "test-retrieval"} <= pictures
