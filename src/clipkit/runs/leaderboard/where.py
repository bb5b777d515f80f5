"""Which of the gathered runs are asked for: `where.KEY=VALUE`.

Used by: clipkit.runs.leaderboard
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from clipkit.errors import UserError
from clipkit.runs.leaderboard.rows import Row

__all__ = ["choose_rows"]

KEYS = ("command", "approach", "backbone", "data", "shots", "seed", "status", "folder")
LISTED = 20


def choose_rows(rows: Sequence[Row], where: Mapping[str, Any] | None) -> list[Row]:
    """The rows that fit all keys, each with a value, a pattern, or several of them.

    Raises:
        UserError: an unknown key, a value that no run has, or values that no run has together.
    """
    chosen, where = list(rows), {} if where is None else where
    if not isinstance(where, Mapping):
        raise UserError(f"where={where}: keys with values are expected, such as where.approach=mlp; {', '.join(KEYS)}")
    for key, asked in where.items():
        if key not in KEYS:
            near = get_close_matches(key, KEYS, n=1)
            hint = f"did you mean where.{near[0]}? " if near else ""
            raise UserError(f"where.{key}: {hint}choose from {', '.join(KEYS)}")
        if asked is None:
            continue
        patterns = [_text(value) for value in (asked if isinstance(asked, list) else [asked])]
        for pattern in patterns:
            if not any(fnmatchcase(_of(row, key), pattern) for row in rows):
                raise UserError(f"where.{key}={pattern}: {_unknown(pattern, rows, key)}")
        chosen = [row for row in chosen if any(fnmatchcase(_of(row, key), pattern) for pattern in patterns)]
    if not chosen:
        said = ", ".join(f"{key}={_text(value)}" for key, value in where.items() if value is not None)
        raise UserError(f"where: none of the {len(rows):,} runs has all of {said}; ask for less")
    return chosen


def _of(row: Row, key: str) -> str:
    value = getattr(row, key)
    return "" if value is None else str(value)


def _text(value: Any) -> str:
    """As it is written in a run's record, which is JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(pattern: str, rows: Sequence[Row], key: str) -> str:
    known = sorted({_of(row, key) for row in rows} - {""})
    near = get_close_matches(pattern, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    listed = ", ".join(known[:LISTED]) + (f", … ({len(known):,} in all)" if len(known) > LISTED else "")
    return f"no run has it; {hint}" + (f"there are {listed}" if known else f"no run says its {key}")
