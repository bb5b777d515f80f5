"""`leaderboard.md`, for people; `leaderboard.csv` and `leaderboard_groups.csv`, for programs.

Used by: clipkit.leaderboard
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from clipkit.errors import UserError
from clipkit.runs.csv_file import csv_file
from clipkit.runs.leaderboard.board import Board
from clipkit.runs.leaderboard.columns import Column, alike, group_columns, run_columns, without_columns
from clipkit.runs.leaderboard.groups import Mean

__all__ = ["write_tables"]

WHAT = ("command", "approach", "backbone", "data", "shots", "overrides", "recipe")
RUN = (
    "rank", "folder", *WHAT, "seed", "split_seed", "status", "reason", "counts", "started", "wall_s", "memory_mb",
)  # fmt: skip
MANY = 1000  # runs whose tables are written beside the page
LISTED = 1000  # rows of a table in Markdown
GROUP = ("rank", *WHAT, "runs", "seeds")

ESCAPED = str.maketrans({letter: f"\\{letter}" for letter in "\\|`*_<>[]"} | {"\n": " ", "\r": " "})


@contextmanager
def write_tables(folder: Path, board: Board, *, grouped: bool) -> Iterator[None]:
    """Write the three files, of many runs in a process beside what is done inside.

    Args:
        folder: an existing one.
        board: what is written.
        grouped: whether Markdown has the averaged table too; the CSV files have both in any case.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    if len(board.runs) < MANY or not hasattr(os, "fork"):
        _write(folder, board, grouped)
        yield
        return
    context = get_context("fork")  # the board is there already, and need not be sent
    ours, theirs = context.Pipe(duplex=False)

    def beside() -> None:
        try:
            _write(folder, board, grouped)
            theirs.send(None)
        except UserError as error:
            theirs.send(str(error))

    writer = context.Process(target=beside)
    writer.start()
    theirs.close()
    try:
        yield
        try:
            problem = ours.recv()
        except EOFError:
            problem = f"the tables could not be written to {folder}: the process that wrote them was ended"
    finally:
        writer.join()
    if problem is not None:
        raise UserError(problem)


def _write(folder: Path, board: Board, grouped: bool) -> None:
    _write_runs(folder / "leaderboard.csv", board)
    _write_groups(folder / "leaderboard_groups.csv", board)
    path = folder / "leaderboard.md"
    try:
        path.write_text(_markdown(board, grouped=grouped), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error


def _write_runs(path: Path, board: Board) -> None:
    """One row a run, those with a result first; `rank` as in the tables; metrics with all their digits."""
    metrics = sorted(set().union(*{tuple(row.metrics) for row in board.runs}))
    with csv_file(path) as rows:
        rows.writerow([*RUN, *metrics])
        for rank, row in enumerate([*board.runs, *board.without], 1):
            told = {
                **vars(row),
                "rank": rank if row.finished else None,
                "counts": str(row.finished and row.folder not in board.repeated).lower(),
                "overrides": " ".join(row.said),
            }
            rows.writerow([*(told[name] for name in RUN), *map(row.metrics.get, metrics)])


def _write_groups(path: Path, board: Board) -> None:
    """One row a recipe, and of every metric mean, standard deviation (n − 1) and n."""
    metrics = sorted({name for group in board.groups for name in group.means})
    with csv_file(path) as rows:
        rows.writerow([*GROUP, *(f"{name} {what}" for name in metrics for what in Mean._fields)])
        for rank, group in enumerate(board.groups, 1):
            told = {
                **vars(group.newest),
                "rank": rank,
                "runs": len(group.counted),
                "seeds": group.seeds,
                "overrides": " ".join(group.newest.said),
            }
            means = (group.means.get(name, (None, None, None)) for name in metrics)
            rows.writerow([*(told[name] for name in GROUP), *chain.from_iterable(means)])


def _markdown(board: Board, *, grouped: bool) -> str:
    parts = ["# Leaderboard", _escaped(f"Runs below {os.fspath(board.root)}; {board.way}.")]
    shared = [f"{title} {text}" for title, text in alike([group.newest for group in board.groups]).items() if text]
    if shared:
        parts.append(_escaped(f"All with a result: {', '.join(shared)}."))
    parts += [f"- {_escaped(note)}" for note in board.notes]
    if grouped and board.groups:
        said = "Mean ± standard deviation (n − 1) over the runs that differ in their seeds alone; the best is bold."
        parts += ["## Recipes", said, _table(group_columns(board), numbered=True)]
    if board.runs:
        parts += ["## Runs", _table(run_columns(board), numbered=True)]
    if board.without:
        parts += [
            "## Without a result",
            f"{board.statuses}; none of them counts above.",
            _table(without_columns(board)),
        ]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[Column], *, numbered: bool = False) -> str:
    best = [column.best for column in columns]
    count = len(columns[0].texts or columns[0].values)
    head = [*(["#"] if numbered else []), *(_escaped(column.title) for column in columns)]
    rule = [*(["--:"] if numbered else []), *("--:" if column.is_number else "---" for column in columns)]
    lines = [head, rule]
    for index in range(min(count, LISTED)):
        cells = [_escaped(column.shown(index)) for column in columns]
        bold = [f"**{cell}**" if index in best[place] else cell for place, cell in enumerate(cells)]
        lines.append([*([str(index + 1)] if numbered else []), *bold])
    more = f"\n\n… and {count - LISTED:,} more in leaderboard.csv" if count > LISTED else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _escaped(text: str) -> str:
    return text.translate(ESCAPED)
