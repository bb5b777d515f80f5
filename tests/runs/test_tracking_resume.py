"""A run that was killed and resumed is one run at W&B and in TensorBoard, complete and without a step back."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from wandb_files import history, offline_folders, run_record

from conftest import TINY, Command

RECIPE = (
    *TINY,
    "approach.stages.towers.epochs=6",
    "approach.stages.towers.batch_size=16",
    "trainer.checkpoint_steps=3",
    "evaluators=[retrieval]",
    "report=false",
    "name=followed",
    "logger.loggers=[{_target_: clipkit.runs.tensorboard_tracking.TensorBoardTracker},"
    "{_target_: clipkit.runs.wandb_tracking.WandbTracker}]",
)


def start_until(clipkit: Command, steps: int) -> tuple["subprocess.Popen[str]", Path]:
    """The recipe, running, with so many optimiser steps done."""
    process = clipkit.start("train", *RECIPE)
    folder = clipkit.folder / "outputs/train/followed"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if sum(name == "train/loss_step" for name, _, _ in points(folder)) >= steps:
            return process, folder
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


def points(folder: Path) -> set[tuple[str, int, float]]:
    """The numbers of `metrics.csv`, of which the last line may be half written."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return set()
    rows = [row for row in csv.reader(path.read_text().splitlines()[1:]) if len(row) == 5 and row[2]]
    return {(name, int(step), float(value)) for _, _, step, name, value in rows if value}


@pytest.mark.slow
def test_a_killed_run_that_is_resumed_is_one_run_without_gaps_or_steps_back(clipkit: Command) -> None:
    process, folder = start_until(clipkit, 20)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    identity = json.loads((folder / "run.json").read_text())["wandb_id"]
    done = clipkit("train", f"resume={folder}")
    assert done.returncode == 0, done.stderr

    assert "no longer" not in done.stdout, done.stdout
    before, after = offline_folders(folder)
    assert identity in before.name
    assert run_record(after).run_id == identity == json.loads((folder / "run.json").read_text())["wandb_id"]
    rows = history(after)
    places = [row["optimiser_step"] for row in rows]
    assert places == [row["_step"] for row in rows] == list(range(len(places)))
    known = {name for name, _, _ in points(folder)}
    assert {(n, row["optimiser_step"], row[n]) for row in rows for n in row if n in known} == points(folder)

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    end = len(places) - 1  # the place of the final numbers
    drawn = [(name, e.step, e.value) for name in known for e in events.Scalars(name) if e.step < end]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(name, at, float(np.float32(value))) for name, at, value in points(folder)}


@pytest.mark.slow
def test_training_goes_on_when_wandbs_own_process_is_gone(clipkit: Command) -> None:
    process, folder = start_until(clipkit, 20)
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid=,comm="], capture_output=True, text=True)
    (service,) = [int(line.split()[0]) for line in listed.stdout.splitlines() if "wandb" in line]
    os.kill(service, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("W&B follows this run no longer") == 1
    assert "Traceback" not in said
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
