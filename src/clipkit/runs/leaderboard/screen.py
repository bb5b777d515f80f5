"""What `leaderboard` prints: the best, as far as the terminal is wide; what has no result; where the files are.

Used by: clipkit.leaderboard
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from clipkit.runs.leaderboard.board import Board
from clipkit.runs.leaderboard.columns import Column, alike, group_columns, run_columns
from clipkit.runs.progress import as_text, as_typed, console, say
from clipkit.runs.record import Run

__all__ = ["say_board"]

FOLDED = 36  # letters of a line of overrides; longer ones take several
GAP = 2
REASONS = 3  # runs without a result that are named
FILES = {"page": "leaderboard.html", "tables": "leaderboard.md", "numbers": "leaderboard.csv"}


def say_board(run: Run, board: Board, *, grouped: bool, top: int) -> None:
    """Print the first `top` recipes (runs, if not `grouped`)."""
    rows = [group.newest for group in board.groups] if grouped else board.runs
    columns = group_columns(board) if grouped else run_columns(board)
    what = "recipes" if grouped else "runs"
    console.print()
    console.print(
        as_text(f"{len(rows):,} {what if len(rows) != 1 else what[:-1]}, {board.way}", "bold"), soft_wrap=True
    )
    shared = [f"{title} {text}" for title, text in alike(rows).items() if text]
    if shared and rows:
        console.print(as_text(f"  all of them: {', '.join(shared)}", "dim"), soft_wrap=True)
    if rows:
        console.print("", _table(_fitting(columns, len(rows), top), min(top, len(rows)), len(rows)), sep="\n")
    more = len(rows) - top
    if more > 0:
        console.print(f"… and {more:,} more {what}")
    console.print()
    say(board.notes)
    _say_without(board)
    for key, name in FILES.items():
        console.print(as_text(f"  {key:<8} {as_typed(run.folder) / name}"), soft_wrap=True)


def _say_without(board: Board) -> None:
    if not board.without:
        return
    console.print(as_text(f"  without a result, and in no mean: {board.statuses}", "yellow"), soft_wrap=True)
    for row in board.without[:REASONS]:
        why = f": {row.reason}" if row.reason else ""
        console.print(as_text(f"    {row.folder}  {row.status}{why}"[: max(console.width, 40)]), soft_wrap=True)
    if len(board.without) > REASONS:
        console.print(f"    … and {len(board.without) - REASONS:,} more; the page names them all")


def _fitting(columns: Sequence[Column], count: int, top: int) -> list[Column]:
    """What tells rows apart and the first metric in any case, further columns as far as there is room."""
    first = next((column.title for column in columns if column.smaller is not None), "")
    needed = [
        c for c in columns if c.smaller is None and c.title not in ("seconds", "GB", "started", "seeds", "counts")
    ]
    optional = [c for c in columns if c not in needed and c.title != first and c.title not in ("seeds", "counts")]
    room = (
        console.width
        - len(str(min(count, top)))
        - sum(_width(c, min(count, top)) + GAP for c in columns if c in needed or c.title == first)
    )
    for column in optional:
        width = _width(column, min(count, top)) + GAP
        if width <= room:
            room -= width
            needed.append(column)
    return [column for column in columns if column in needed or column.title == first]


def _width(column: Column, count: int) -> int:
    cells = max((len(column.shown(index)) for index in range(count)), default=0)
    return max(min(cells, FOLDED), *map(len, _head(column.title).split("\n")))


def _head(title: str) -> str:
    """A metric's name in two lines: where, and what."""
    place, slash, measure = title.rpartition("/")
    return f"{place}\n{measure}" if slash else title


def _table(columns: Sequence[Column], shown: int, count: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("", justify="right", style="dim")
    for column in columns:
        fold = FOLDED if column.title in ("overrides", "folder") else None
        table.add_column(
            Text(_head(column.title)),
            justify="right" if column.is_number else "left",
            overflow="fold",
            max_width=fold,
            no_wrap=fold is None,
            vertical="top",
        )
    best = [column.best for column in columns]
    for index in range(shown):
        cells = [
            as_text(column.shown(index), "bold green" if index in best[place] else "")
            for place, column in enumerate(columns)
        ]
        table.add_row(str(index + 1), *cells)
    return table
