"""`metrics.csv`: every logged number as one row (stage, epoch, step, name, value), appended as training goes."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers.logger import Logger

__all__ = ["MetricsFile", "NamelessLogger", "on_one_axis", "read_metrics"]

COLUMNS = ("stage", "epoch", "step", "name", "value")


class NamelessLogger(Logger):
    """Lightning's logger interface for what belongs to a run's folder, and knows the configuration already."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """It has been told, or `config.yaml` holds them."""


class MetricsFile(NamelessLogger):
    """Lightning's logger interface over one append-only file. Steps are counted within each stage.

    Args:
        path: of the file; rows of a run that is resumed are kept up to where it resumes.

    Attributes:
        offset: where the stage begins on the axis of all stages.
        at: where on that axis the stage began, or was resumed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.writes = True  # False in all but the first of several processes
        self.stage = ""
        self.offset = self.at = 0
        self._rows: list[tuple[Any, ...]] = []

    def begin(self, stage: str, step: int) -> None:
        """Start (or resume) a stage at a step: rows that a resumed run would write again are removed."""
        self.flush()
        self.stage = stage
        self.offset = 0
        if self.path.is_file() and self.writes:
            table = read_metrics(self.path)
            known = list(dict.fromkeys(table["stage"]))
            later = known[known.index(stage) + 1 :] if stage in known else []
            again = (table["stage"] == stage) & (table["step"] >= step)
            kept = table[~again & ~table["stage"].isin(later)]
            if len(kept) < len(table):
                kept.to_csv(self.path, index=False)
            self.offset = _end(kept[kept["stage"] != stage])
        self.at = self.offset + step

    @property
    def end(self) -> int:
        """The first place on the axis of all stages that has no step yet."""
        self.flush()
        return _end(read_metrics(self.path)) if self.path.is_file() else 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = metrics.get("epoch", "")
        for name, value in metrics.items():
            if name != "epoch":
                self._rows.append((self.stage, epoch, step, name, repr(float(value))))
        if len(self._rows) > 500:
            self.flush()

    def save(self) -> None:
        self.flush()

    def finalize(self, status: str) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._rows or not self.writes:
            self._rows = []
            return
        new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows(self._rows)
        self._rows = []


def read_metrics(path: Path) -> pd.DataFrame:
    """The rows of a `metrics.csv`."""
    return pd.read_csv(path, dtype={"stage": str, "name": str, "epoch": "Int64"}, keep_default_na=True)


def on_one_axis(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows with a column `at`, their place on one axis through all stages, and where each stage begins on it."""
    table = table.assign(at=table["step"])
    starts, offset = {}, 0
    for stage in dict.fromkeys(table["stage"].dropna()):
        rows = table["stage"] == stage
        table.loc[rows, "at"] = table.loc[rows, "step"] + offset
        starts[stage] = offset
        last = table.loc[rows, "at"].max()
        offset = offset if pd.isna(last) else int(last) + 1
    return table, starts


def _end(table: pd.DataFrame) -> int:
    last = on_one_axis(table)[0]["at"].max()
    return 0 if pd.isna(last) else int(last) + 1
