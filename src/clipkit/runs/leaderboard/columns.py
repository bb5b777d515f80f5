"""The columns of a leaderboard's tables, as the terminal, Markdown and the page show them.

Used by: clipkit.runs.leaderboard.screen, tables, page
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from clipkit.runs.leaderboard.board import Board
from clipkit.runs.leaderboard.groups import Mean, differing
from clipkit.runs.leaderboard.rows import Row

__all__ = ["Column", "alike", "group_columns", "run_columns", "without_columns"]

TELLS_APART: dict[str, Callable[[Row], str]] = {
    "command": lambda row: row.command,
    "approach": lambda row: row.approach,
    "backbone": lambda row: row.backbone,
    "data": lambda row: row.data,
    "shots": lambda row: row.shots,
}
ALWAYS = "approach"
LONG = 8  # characters of a number


@dataclass(frozen=True, eq=False)
class Column:
    """One column: of texts, or of numbers with a standard deviation each or none.

    Args:
        title: above it; a metric's full name.
        texts: of a column of texts; empty for numbers.
        values, stds: of a column of numbers; None where there is none.
        digits: of numbers, behind the point.
        smaller: whether the smallest is best; None if none is better than another.
    """

    title: str
    texts: Sequence[str] = ()
    values: Sequence[float | None] = ()
    stds: Sequence[float | None] = ()
    digits: int = 0
    smaller: bool | None = None

    @property
    def is_number(self) -> bool:
        """Whether it belongs to the right."""
        return not self.texts and bool(self.values)

    def shown(self, index: int) -> str:
        """A cell as text; empty if it has nothing."""
        if not self.is_number:
            return self.texts[index] if self.texts else ""
        value, std = self.values[index], self.stds[index] if self.stds else None
        if value is None:
            return ""
        text = f"{value:,.{self.digits}f}"
        return text if std is None else f"{text} ± {std:,.{self.digits}f}"

    @cached_property
    def best(self) -> set[int]:
        """The rows with the best value, as far as it can be seen; none where all are alike."""
        known = [value for value in self.values if value is not None]
        if self.smaller is None or len(known) < 2 or min(known) == max(known):
            return set()
        best = (min if self.smaller else max)(known)
        top, near = f"{best:.{self.digits}f}", 2 * 10**-self.digits
        alike = (i for i, value in enumerate(self.values) if value is not None and abs(value - best) < near)
        return {i for i in alike if f"{self.values[i]:.{self.digits}f}" == top}


def alike(rows: Sequence[Row]) -> dict[str, str]:
    """What all rows share of the columns that tell them apart, and which are therefore left out."""
    found = {title: {tell(row) for row in rows} for title, tell in TELLS_APART.items() if title != ALWAYS}
    return {title: next(iter(texts)) for title, texts in found.items() if len(texts) == 1}


@cache  # the terminal, Markdown and the page show the same
def group_columns(board: Board) -> list[Column]:
    """Of the groups, in order: what tells them apart, how many runs, means, time."""
    rows = [group.newest for group in board.groups]
    columns = _identity(rows)
    columns.append(Column("runs", [group.count for group in board.groups]))
    columns.append(Column("seeds", [group.seeds for group in board.groups]))
    for name in board.columns:
        means = [group.means.get(name, Mean(0, None, 0)) for group in board.groups]
        values = [told.mean if told.n else None for told in means]
        columns.append(_metric(board, name, values, [told.std for told in means]))
    seconds = [[row.wall_s for row in group.counted if row.wall_s is not None] for group in board.groups]
    columns.append(Column("seconds", values=[sum(each) / len(each) if each else None for each in seconds]))
    return columns


@cache
def run_columns(board: Board) -> list[Column]:
    """Of the runs with a result, in order."""
    rows = board.runs
    columns = [*_identity(rows), Column("seed", values=[row.seed for row in rows])]
    columns += [_metric(board, name, [row.metrics.get(name) for row in rows]) for name in board.columns]
    columns += _cost(rows)
    if board.repeated:
        columns.append(Column("counts", ["a newer one" if row.folder in board.repeated else "yes" for row in rows]))
    return [*columns, Column("folder", [row.folder for row in rows])]


def without_columns(board: Board) -> list[Column]:
    """Of the runs without a result, the newest first: what became of them, and why."""
    rows = board.without
    columns = [Column("status", [row.status for row in rows]), Column("why", [row.reason for row in rows])]
    columns += [*_identity(rows), Column("seed", values=[row.seed for row in rows]), *_cost(rows)]
    return [*columns, Column("folder", [row.folder for row in rows])]


def _identity(rows: Sequence[Row]) -> list[Column]:
    """What tells runs apart; what is alike in all is left out."""
    left_out = alike(rows)
    columns = [Column(n, [tell(row) for row in rows]) for n, tell in TELLS_APART.items() if n not in left_out]
    apart = differing(rows)
    if any(apart.values()):
        columns.append(Column("overrides", [" ".join(map(_short, apart[row.folder])) for row in rows]))
    return columns


@cache
def _short(override: str) -> str:
    """With four digits of a number that has many, as a search draws them; the CSV files have them all."""
    key, _, value = override.partition("=")
    try:
        return f"{key}={float(value):.4g}" if len(value) > LONG and not value.isdigit() else override
    except ValueError:
        return override


def _cost(rows: Sequence[Row]) -> list[Column]:
    memory = [None if row.memory_mb is None else row.memory_mb / 1000 for row in rows]
    return [
        Column("seconds", values=[row.wall_s for row in rows]),
        Column("GB", values=memory, digits=1),
        Column("started", [row.started[:16].replace("T", " ") for row in rows]),
    ]


def _metric(board: Board, name: str, values: Sequence[float | None], stds: Sequence[float | None] = ()) -> Column:
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    digits = 0 if largest >= 10_000 else 1 if largest >= 100 or "rank" in name else 3 if largest >= 0.01 else 6
    return Column(name, values=values, stds=stds, digits=digits, smaller=board.smaller[name])
