"""The table at the end of a multirun: each of its runs, what it was asked for, how it ended, what it reached.

Run: python -m clipkit.train -m approach=mlp,aamp_mlp seed=0,1,2
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich.table import Table

from clipkit.runs.command_line import quoted, unquoted
from clipkit.runs.progress import as_text, as_typed, console
from clipkit.runs.record import read_json
from clipkit.runs.report import readable
from clipkit.runs.sweeps import Sweep, Together, key_of

__all__ = ["Grid", "GridJob", "read_jobs"]

MAIN = ("top1", "i2t_recall@1")
SUBSETS = ("seen", "unseen")
COLUMNS = 3  # numbers beside each other, as far as there is room
WIDE = 48  # characters of what was asked for that stay in one line
PLACE = ("hydra.sweep.dir", "resume", "overwrite")
STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow"}


@dataclass(frozen=True)
class GridJob:
    """A run as its folder tells of it."""

    name: str
    overrides: tuple[str, ...]
    status: str
    metrics: Mapping[str, float]
    score: float | None


class Grid(Together):
    """All combinations of the values of a command line, in one folder."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.folder = sweep, Path(sweep.folder)
        self.planned = prod(max(1, len(values)) for values in sweep.values.values())

    def rounds(self) -> list[list[str]]:
        """One, as it was asked for, in a folder that is known from now on."""
        asked = [text for text in self.sweep.overrides if key_of(text) != "hydra.sweep.dir"]
        return [[*self.sweep.flags, *asked, f"hydra.sweep.dir={quoted(str(self.folder))}"]]

    def close(self) -> None:
        """Print the table; whatever is wrong with the folder's files fails nothing."""
        try:
            jobs = read_jobs(self.folder)
            if jobs:
                _show(jobs, self.folder, self.planned)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            console.print(f"the table of {self.folder} could not be made: {error}", markup=False, soft_wrap=True)

    def how_to_continue(self) -> str:
        said = [unquoted(text) for text in self.sweep.overrides if key_of(text) not in PLACE]
        parts = [*self.sweep.flags, *said, f"hydra.sweep.dir={self.folder}", "resume=auto"]
        return f"python -m clipkit.{self.sweep.command} {shlex.join(parts)}"


def read_jobs(folder: Path) -> list[GridJob]:
    """The runs below a multirun's folder, by number where they are numbered."""
    found = []
    for file in folder.rglob("run.json"):
        about, metrics = read_json(file) or {}, read_json(file.with_name("metrics.json")) or {}
        score = about.get("score")
        found.append(
            GridJob(
                name=str(file.parent.relative_to(folder)),
                overrides=tuple(str(text) for text in about.get("overrides", ())),
                status=str(about.get("status", "unreadable")),
                metrics={name: float(value) for name, value in metrics.items()},
                score=None if score is None else float(score),
            )
        )
    return sorted(found, key=lambda job: (int(job.name) if job.name.isdigit() else -1, job.name))


def _show(jobs: Sequence[GridJob], folder: Path, planned: int) -> None:
    columns, anything = _columns(jobs), console.options.update(width=1000)
    while len(columns) > 1 and console.measure(_table(jobs, columns), options=anything).minimum > console.width:
        columns.pop()
    finished = sum(job.status == "finished" for job in jobs)
    console.print()
    console.print(_table(jobs, columns))
    console.print(f"\n  {finished} of {max(planned, len(jobs))} runs are finished   {as_typed(folder.absolute())}")


def _table(jobs: Sequence[GridJob], columns: Sequence[str]) -> Table:
    common = set[str]() if len(jobs) == 1 else set.intersection(*(set(job.overrides) for job in jobs))
    table = Table(title="Runs of this multirun", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    asked = [" ".join(unquoted(text) for text in job.overrides if text not in common) for job in jobs]
    table.add_column("asked for", overflow="fold", min_width=min(WIDE, max(map(len, asked), default=0)))
    table.add_column("status", no_wrap=True)
    for name in columns:
        place, _, what = name.rpartition("/")
        head = [readable(what), place] if place else [name]
        table.add_column("\n".join(head), justify="right", no_wrap=True, min_width=max(map(len, head)))
    for job, own in zip(jobs, asked, strict=True):
        values: dict[str, Any] = {**job.metrics, "validation score": job.score}
        cells = ["–" if values.get(name) is None else f"{values[name]:.3f}" for name in columns]
        table.add_row(as_text(job.name), as_text(own), as_text(job.status, STYLES.get(job.status, "")), *cells)
    return table


def _columns(jobs: Sequence[GridJob]) -> list[str]:
    """The numbers that say most, of those that are there: of the test pictures, else the monitored one."""
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    found = [name for what in MAIN for name in names if _is_main(name, what)]
    tested = [name for name in found if name.startswith("test/")] or found
    return tested[:COLUMNS] or (["validation score"] if any(job.score is not None for job in jobs) else [])


def _is_main(name: str, what: str) -> bool:
    """Whether a metric is the model's own answer: SPLIT/WHAT or SPLIT/SUBSET/WHAT."""
    *place, last = name.split("/")
    return last == what and (len(place) == 1 or (len(place) == 2 and place[1] in SUBSETS))
