"""What follows a run from outside (`logger=wandb`, `logger=tensorboard`): one axis and one order for all of them.

Each stage counts its optimiser steps from 0; trackers see them on one axis through all stages, and never twice. A run
that is resumed goes on where it was: what `metrics.csv` holds and a tracker has missed is told to it first.

Used by: clipkit.runs.training, clipkit.runs.results, clipkit.runs.study.tracking
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger

from clipkit.data.datamodule import PairData
from clipkit.evaluation import Result
from clipkit.models.model import Model
from clipkit.runs.build import build_loggers
from clipkit.runs.examples import Examples, examples_of
from clipkit.runs.metrics_file import MetricsFile, NamelessLogger, on_one_axis, read_metrics
from clipkit.runs.record import Run

__all__ = ["Findings", "Followed", "Other", "Row", "Tracker", "open_trackers", "smaller_is_better", "tell"]

MADE = ("command", "overrides", "recipe", "git_commit", "versions", "python", "hardware", "processes", "started")
SMALLER = ("loss", "rank", "error", "penalty")


@dataclass(frozen=True)
class Followed:
    """What a tracker is told about a run before it begins.

    Args:
        folder: of the run.
        id: by which a service knows it again when it is resumed.
        name, group, job_type: how it is called, what it belongs to, and what it does ("train", "trial" …).
        config: resolved; with `choices`, the options by group, and `made_with`, what `run.json` says of its making.
        axis: what its numbers are drawn over.
    """

    folder: Path
    id: str
    name: str
    group: str | None
    job_type: str
    config: Mapping[str, Any]
    axis: str = "optimiser_step"


@dataclass(frozen=True)
class Row:
    """All numbers of one place on the axis, or some of them; with `stage` (1, 2 …) and `epoch` where they are known."""

    at: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """How a run ends: numbers, tables and figures by name; pictures with the model's answers; its `model/` folder."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    examples: Examples | None = None
    model: Path | None = None


class Tracker(NamelessLogger, ABC):
    """Lightning's logger interface, and the ends of a run. A subclass is made before it is known what it will follow.

    Attributes:
        wants_examples: whether pictures with the model's answers are worth computing.
    """

    wants_examples = True

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.stage = 0, 0

    @abstractmethod
    def open(self, followed: Followed, *, resumed_at: int | None, before: Sequence[Row]) -> None:
        """Begin; of a resumed run at this place of the axis, with all rows before it."""

    @abstractmethod
    def log_row(self, row: Row) -> None:
        """Take numbers; places never go backwards."""

    @abstractmethod
    def log_findings(self, at: int, findings: Findings) -> None:
        """Take the end of a run."""

    @abstractmethod
    def close(self, status: str) -> None:
        """The run has ended: `finished`, `failed` or `interrupted`."""

    def begin(self, number: int, name: str, offset: int) -> None:
        """The next stage, the number-th, begins at this place of the axis."""
        self.stage, self.offset = number, offset

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Lightning's own call, with the step counted within the stage."""
        if step is not None:
            self.log_row(Row(self.offset + step, {**metrics, "stage": self.stage}))


class Other(Tracker):
    """Any logger of Lightning's that a configuration of one's own names, on the same axis."""

    wants_examples = False

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger = logger

    def open(self, followed: Followed, *, resumed_at: int | None, before: Sequence[Row]) -> None:
        self.logger.log_hyperparams(dict(followed.config))

    def log_row(self, row: Row) -> None:
        self.logger.log_metrics(dict(row.values), step=row.at)

    def log_findings(self, at: int, findings: Findings) -> None:
        self.logger.log_metrics(dict(findings.metrics), step=at)

    def close(self, status: str) -> None:
        self.logger.save()
        self.logger.finalize("success" if status == "finished" else "failed")


def open_trackers(config: DictConfig, run: Run, metrics_file: MetricsFile, *, resumed: bool) -> list[Tracker]:
    """The trackers that the configuration names, told what they follow; the end of the run closes them.

    Args:
        config: with the group `logger`.
        run: their ids are kept in its `run.json`.
        metrics_file: of which a resumed run's stage has begun already.
        resumed: whether the run goes on.
    """
    trackers = [one if isinstance(one, Tracker) else Other(one) for one in build_loggers(config)]
    if not trackers:
        return []
    followed = describe(config, run)
    rows = list(_rows(metrics_file.path)) if resumed else []
    run.note(wandb_id=followed.id)
    for tracker in trackers:
        tracker.open(followed, resumed_at=metrics_file.at if resumed else None, before=rows)
    run.at_end = [tracker.close for tracker in trackers]
    return trackers


def tell(
    loggers: Sequence[Logger],
    run: Run,
    result: Result,
    *,
    validation: Mapping[str, float] | None = None,
    asked: tuple[Model, PairData] | None = None,
    split: str | None = None,
) -> None:
    """What a run has found, to `metrics.csv` and to those who follow the run.

    Args:
        loggers: trackers and the metrics file.
        run, result: the folder with `model/`, and what the evaluators said.
        validation: what stands in `metrics.json` beside the result's numbers.
        asked: the model and the data, for a few pictures with answers.
        split: the one that these pictures are from; None: there are none.
    """
    files = [logger for logger in loggers if isinstance(logger, MetricsFile)]
    trackers = [logger for logger in loggers if isinstance(logger, Tracker)]
    for file in files:
        file.log_metrics(result.metrics)
        file.save()
    if not trackers:
        return
    shown = None
    if asked is not None and split is not None and any(tracker.wants_examples for tracker in trackers):
        shown = examples_of(*asked, split)
    findings = Findings(
        metrics={**(validation or {}), **result.metrics},
        tables=result.tables,
        figures=result.figures,
        about=run.about,
        examples=shown,
        model=run.folder / "model",
    )
    for tracker in trackers:
        tracker.log_findings(files[0].end if files else 0, findings)


def describe(config: DictConfig, run: Run) -> Followed:
    """What trackers are told about a training."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    choices = run.about.get("choices", {})
    title = "-".join(str(choices[group]) for group in ("approach", "backbone", "data") if choices.get(group))
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    group = Path(hydra.sweep.dir).name if hydra is not None and hydra.mode == RunMode.MULTIRUN else None
    made = {key: run.about[key] for key in MADE if key in run.about}
    return Followed(
        folder=run.folder.absolute(),
        id=run.about.get("wandb_id") or new_id(),
        name=config.name or " ".join(filter(None, (title, run.folder.name))),
        group=group,
        job_type=hydra.job.config_name if hydra is not None and hydra.job.config_name else "train",
        config={**{str(key): value for key, value in plain.items()}, "choices": choices, "made_with": made},
    )


def new_id() -> str:
    """An id for a service: letters and digits, drawn by the system and not by the run's seed."""
    import secrets

    return secrets.token_hex(5)


def smaller_is_better(metric: str) -> bool:
    """Which way a metric is good, by its name: losses, ranks and errors are better when small."""
    return any(word in metric.rpartition("/")[2] for word in SMALLER)


def _rows(path: Path) -> Iterator[Row]:
    """What `metrics.csv` holds, place by place."""
    if not path.is_file():
        return
    table, starts = on_one_axis(read_metrics(path))
    numbers = {stage: number for number, stage in enumerate(starts, 1)}
    for at, rows in table.dropna(subset=["at"]).groupby("at", sort=True):
        values = dict(zip(rows["name"], rows["value"].astype(float), strict=True))
        epochs = rows["epoch"].dropna()
        known = {"epoch": float(epochs.iloc[-1])} if len(epochs) else {}
        yield Row(int(at), {**values, **known, "stage": numbers[rows["stage"].iloc[-1]]})
