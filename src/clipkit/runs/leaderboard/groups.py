"""Runs that differ in their seeds alone, as one group: mean and standard deviation of every metric; ranking.

Used by: clipkit.runs.leaderboard
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from clipkit.runs.leaderboard.metrics import single
from clipkit.runs.leaderboard.rows import Row
from clipkit.runs.sweeps import key_of

__all__ = ["Group", "Mean", "differing", "group_runs", "ranked"]

Item = TypeVar("Item")


class Mean(NamedTuple):
    """Over n runs; `std` has n − 1 below its root, and is None of a single run."""

    mean: float
    std: float | None
    n: int


@dataclass
class Group:
    """Runs of one command and recipe, the newest first.

    Args:
        runs: all of them.
        counted: those whose metrics are averaged: of each seed the newest that finished.
        means: by metric (ends of intervals and counts left out), over the counted runs that have it.
    """

    runs: list[Row]
    counted: list[Row] = field(default_factory=list)
    means: dict[str, Mean] = field(default_factory=dict)

    @property
    def newest(self) -> Row:
        """The run that stands for the others where they are alike."""
        return (self.counted or self.runs)[0]

    @property
    def seeds(self) -> str:
        """Of the counted runs, in rising order."""
        return " ".join(map(str, sorted(row.seed for row in self.counted if row.seed is not None)))

    @property
    def count(self) -> str:
        """How many runs the means are of, and what became of the other seeds: "3", or "2 of 3"."""
        asked = len({_repetition(row) for row in self.runs})
        return str(len(self.counted)) if asked == len(self.counted) else f"{len(self.counted)} of {asked}"


def group_runs(rows: Iterable[Row]) -> list[Group]:
    """Put runs of one command and recipe together (of `evaluate`, and of one model), in the order they come in."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        model = [text for text in row.said if key_of(text) == "model"] if row.command == "evaluate" else []
        together.setdefault((row.command, row.recipe, *model), []).append(row)
    groups = []
    for runs in together.values():
        newest: dict[tuple[object, ...], Row] = {}
        for row in sorted((row for row in runs if row.finished), key=lambda row: -row.since):
            newest.setdefault(_repetition(row), row)
        counted = list(newest.values())
        groups.append(Group(sorted(runs, key=lambda row: -row.since), counted, _means(counted)))
    return groups


def ranked(items: Iterable[Item], value: Callable[[Item], float | None], *, smaller: bool) -> list[Item]:
    """The best first, what has no value last; what is equal stays in its order."""

    def place(item: Item) -> tuple[bool, float]:
        found = value(item)
        return (True, 0.0) if found is None else (False, found if smaller else -found)

    return sorted(items, key=place)


def differing(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """By a run's folder, what it said on the command line and not all of them did."""
    counts = Counter(text for row in rows for text in set(row.said))
    return {row.folder: tuple(text for text in row.said if counts[text] < len(rows)) for row in rows}


def _repetition(row: Row) -> tuple[object, ...]:
    """What tells the runs of one recipe apart; runs that do not know their seed are each their own."""
    return (row.folder,) if row.seed is None else (row.seed, row.split_seed)


def _means(runs: Sequence[Row]) -> dict[str, Mean]:
    if len(runs) == 1:
        return {name: Mean(value, None, 1) for name, value in runs[0].metrics.items() if single(name)}
    names = dict.fromkeys(name for row in runs for name in row.metrics if single(name))
    return {name: _mean([row.metrics[name] for row in runs if name in row.metrics]) for name in names}


def _mean(values: Sequence[float]) -> Mean:
    n = len(values)
    if n == 1:
        return Mean(values[0], None, 1)
    mean = math.fsum(values) / n
    return Mean(mean, math.hypot(*(value - mean for value in values)) / math.sqrt(n - 1), n)
