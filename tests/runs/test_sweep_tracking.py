"""A sweep is one run at W&B and in TensorBoard: a step a trial, the best so far, a table of all at the end."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from wandb_files import history, metric_axes, offline_folders, run_record, summary

from clipkit.runs.study.tracking import Ended, SweepTracking

BOTH = [
    {"_target_": "clipkit.runs.tensorboard_tracking.TensorBoardTracker"},
    {"_target_": "clipkit.runs.wandb_tracking.WandbTracker", "job_type": "${logger.job_type}"},
]
TRIALS: list[dict[str, Any]] = [
    {"number": 0, "params": {"lr": 0.1, "head": "mlp"}, "values": {"val/loss": 2.0, "val/top1": 0.5},
     "status": "finished", "seconds": 3.0},
    {"number": 1, "params": {"lr": 0.2, "head": "mlp"}, "values": {"val/loss": 1.0},
     "status": "pruned", "seconds": 1.0},
    {"number": 3, "params": {"lr": 0.3, "head": "mlp"}, "values": None, "status": "failed", "seconds": 0.5},
    {"number": 2, "params": {"lr": 0.4, "head": "mlp"}, "values": {"val/loss": 1.5, "val/top1": 0.4},
     "status": "finished", "seconds": 3.0},
]  # fmt: skip


def follow(folder: Path, loggers: list[Any], trials: list[Any], *, before: list[Any] | None = None) -> None:
    config = OmegaConf.create({"seed": 0, "logger": {"loggers": loggers, "job_type": "trial"}})
    objectives = {"val/loss": "minimize", "val/top1": "maximize"}
    tracking = SweepTracking(config, folder, "my_sweep", objectives, before=[Ended(**t) for t in before or []])
    for trial in trials:
        tracking.trial(Ended(**trial))
    table = pd.DataFrame([{"number": t["number"], **t["params"]} for t in TRIALS])
    tracking.close({"progress": Figure()}, table)


def test_a_sweep_that_is_continued_is_one_run_with_a_step_a_trial(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(tmp_path, BOTH, TRIALS[:2])
    follow(tmp_path, BOTH, TRIALS[2:], before=TRIALS[:2])
    first, second = offline_folders(tmp_path)
    told = run_record(second)
    assert run_record(first).run_id == told.run_id == json.loads((tmp_path / "tracking.json").read_text())["wandb_id"]
    assert (told.display_name, told.run_group, told.job_type) == ("my_sweep", "my_sweep", "sweep")
    rows = history(second)[:4]
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert [row["number"] for row in rows] == [0, 1, 3, 2]
    assert [row["params/lr"] for row in rows] == [0.1, 0.2, 0.3, 0.4]
    assert [row["best/val/loss"] for row in rows] == [2.0, 2.0, 2.0, 1.5]  # of finished trials alone
    assert [row["best/val/top1"] for row in rows] == [0.5] * 4
    assert [row["status"] for row in rows] == [0, 1, 2, 0]
    assert metric_axes(second)["best/val/loss"] == "trial"
    assert summary(second)["best/val/top1"] == 0.5
    assert any("plots/progress" in name for name in summary(second))
    assert summary(second)["tables/trials/nrows"] == 4

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    best = [(event.step, event.value) for event in events.Scalars("best/val/loss")]
    assert best[:4] == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 1.5)]


def test_without_a_logger_nothing_is_written(tmp_path: Path) -> None:
    follow(tmp_path, [], TRIALS)
    assert list(tmp_path.iterdir()) == []
