"""Weights & Biases: configuration, curves over one axis, summaries, tables with pictures, the model as an artifact.

Run: python -m clipkit.train logger=wandb logger.project=my-project
     python -m clipkit.train logger=wandb logger.offline=true
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from clipkit.plots.png import png
from clipkit.runs.tracking import Findings, Followed, Row, Tracker, smaller_is_better
from clipkit.runs.wandb_session import begin_session, end_service, first_line, say

__all__ = ["WandbTracker"]

ROWS = 1_000  # of a table
CELLS = 10_000  # of a confusion matrix: what a chart of theirs draws
COSTS = ("wall_s", "peak_memory_mb")


class WandbTracker(Tracker):
    """One W&B run, the same one when training is resumed. Whatever goes wrong with it, training goes on.

    A row of numbers is sent once its place is complete, so that what a stopped run sends again continues it exactly.
    In the summary, `NAME` is the final number (else the last), `best/NAME` and `last/NAME` of each validation metric.

    Args:
        project, entity, notes, tags: as W&B calls them.
        group: what the run belongs to; None: the multirun that it is a job of.
        job_type: None: the command.
        offline: write to the run's folder alone.
        artifact: send the `model/` folder, too.
        finish_timeout: seconds that the end of the run waits for what is still to be sent.
    """

    def __init__(
        self,
        project: str = "clipkit",
        entity: str | None = None,
        *,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        offline: bool = False,
        artifact: bool = False,
        finish_timeout: float = 120.0,
    ) -> None:
        super().__init__()
        self.project, self.entity, self.group, self.job_type = project, entity, group, job_type
        self.tags, self.notes, self.offline, self.artifact = tags, notes, offline, artifact
        self.finish_timeout = finish_timeout
        self._session: Any = None
        self._axis = ""
        self._waiting: Row | None = None
        self._known: set[str] = set()
        self._best: dict[str, float] = {}

    def open(self, followed: Followed, *, resumed_at: int | None, before: Sequence[Row]) -> None:
        self._axis = followed.axis
        self._session = begin_session(
            offline=self.offline,
            finish_timeout=self.finish_timeout,
            folder=followed.folder,
            id=followed.id,
            resume="allow",
            project=self.project,
            entity=self.entity,
            name=followed.name,
            group=self.group or followed.group,
            job_type=self.job_type or followed.job_type,
            tags=list(self.tags) if self.tags else None,
            notes=self.notes,
            config=dict(followed.config),
        )
        self._safely(lambda session: session.define_metric(self._axis, hidden=True))
        for row in before:
            self.log_row(row)

    def log_row(self, row: Row) -> None:
        if self._waiting is not None and row.at == self._waiting.at:
            self._waiting = Row(row.at, {**self._waiting.values, **row.values})
            return
        self._send()
        self._waiting = row

    def log_findings(self, at: int, findings: Findings) -> None:
        self._send()
        costs = {name: findings.about[name] for name in COSTS if name in findings.about}
        self._safely(lambda session: session.summary.update({**costs, **findings.metrics}))
        self._safely(lambda session: session.log({**_media(findings), self._axis: at}, step=at, commit=True))
        if self.artifact and findings.model is not None and findings.model.is_dir():
            self._safely(partial(_send_model, folder=findings.model, metrics=findings.metrics))

    def close(self, status: str) -> None:
        if status != "interrupted":  # a place that is not complete comes again when the run is resumed
            self._send()
        self._safely(lambda session: session.summary.update({"status": status}))
        self._safely(lambda session: session.finish(exit_code=0 if status == "finished" else 1))
        self._session = None

    def _send(self) -> None:
        """The row that has waited, unless W&B has it from before a resume."""
        row, self._waiting = self._waiting, None
        if row is not None:
            self._safely(lambda session: self._send_row(session, row))

    def _send_row(self, session: Any, row: Row) -> None:
        for name in row.values.keys() - self._known:
            session.define_metric(name, step_metric=self._axis)
            self._known.add(name)
        if row.at >= session.step:
            session.log({**row.values, self._axis: row.at}, step=row.at, commit=True)
        validated = {name: value for name, value in row.values.items() if name.startswith("val/")}
        for name, value in validated.items():
            sign = -1 if smaller_is_better(name) else 1
            if name not in self._best or sign * value > sign * self._best[name]:
                self._best[name] = value
        if validated:
            best = {f"best/{name}": self._best[name] for name in validated}
            session.summary.update({**best, **{f"last/{name}": value for name, value in validated.items()}})

    def _safely(self, act: Callable[[Any], object]) -> None:
        if self._session is None:
            return
        try:
            act(self._session)
        except Exception as error:  # whatever it is: training goes on
            self._session = None
            say(f"W&B follows this run no longer ({first_line(error)}); everything is in the run's folder")
            end_service()


def _media(findings: Findings) -> dict[str, Any]:
    """Figures, tables, confusion matrices as charts, and the examples, by their names at W&B."""
    found = {f"plots/{name}": _picture(png(figure)) for name, figure in findings.figures.items()}
    found |= {f"tables/{name}": _table(table) for name, table in findings.tables.items()}
    confusions = {name: table for name, table in findings.tables.items() if name.endswith("confusion")}
    found |= {f"charts/{name}": _confusion(name, table) for name, table in confusions.items()}
    if findings.examples is not None:
        found["tables/examples"] = _table(findings.examples.table, pictures=findings.examples.pictures)
    return found


def _picture(content: bytes) -> Any:
    import wandb

    return wandb.Image(Image.open(io.BytesIO(content)).convert("RGB"))


def _send_model(session: Any, *, folder: Path, metrics: Mapping[str, float]) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{session.id}", type="model", metadata=dict(metrics))
    for path in sorted(folder.rglob("*")):
        if path.is_file():  # a whole folder would be announced on the screen, and copied
            artifact.add_file(str(path), name=path.relative_to(folder).as_posix(), policy="immutable")
    session.log_artifact(artifact, aliases=["latest", "best"])


def _table(table: pd.DataFrame, pictures: Sequence[Image.Image] = ()) -> Any:
    """A W&B table of the first rows, with unlike types where the values are unlike, and pictures in front."""
    import wandb

    shown = table.head(ROWS)
    columns = _distinct([str(name) for name in shown.columns])
    rows = [[_plain(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    if pictures:
        columns = ["picture", *columns]
        small = [wandb.Image(picture, file_type="jpg") for picture in pictures]
        rows = [[picture, *row] for picture, row in zip(small, rows, strict=True)]
    return wandb.Table(columns=columns, data=rows, allow_mixed_types=not pictures)  # mixed: shown as words


def _confusion(name: str, shares: pd.DataFrame) -> Any:
    """W&B's own chart of a confusion matrix, from the table of shares: all cells, or the fullest of very many."""
    import wandb

    names = [str(column) for column in shares.iloc[:, 0]]
    pictures = shares.iloc[:, 1].to_numpy()
    counts = np.nan_to_num(shares.iloc[:, 2:].to_numpy(dtype=float) * pictures[:, None]).round().astype(int)
    cells = [(names[i], names[j], int(counts[i, j])) for i in range(len(names)) for j in range(len(names))]
    if len(cells) > CELLS:
        cells = sorted(cells, key=lambda cell: -cell[2])[:CELLS]
    fields = {column: column for column in ("Actual", "Predicted", "nPredictions")}
    table = wandb.Table(columns=list(fields), data=cells)
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": name.replace("-", " ")})


def _distinct(names: Sequence[str]) -> list[str]:
    """Column names of which a class may have taken one."""
    return [name if name not in names[:place] else f"{name} ({place})" for place, name in enumerate(names)]


def _plain(value: Any) -> Any:
    """A value as JSON has it; None for what is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
