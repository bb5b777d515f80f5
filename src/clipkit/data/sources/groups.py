"""Pictures in groups: a CSV, TSV, JSONL or Parquet file with the columns `image` and `group`, one picture a row.

Paths are relative to the file, or absolute. The groups are the classes of the records.
"""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clipkit.data.images import FolderReader
from clipkit.data.listing import is_unicode, shown
from clipkit.data.records import Record, Records
from clipkit.data.sources.rows import open_rows
from clipkit.errors import UserError

__all__ = ["groups"]

COLUMNS = ("image", "group")


def groups(file: str | Path, *, key: str = "file") -> Records:
    """The pictures of a file in its order, split "test", labelled with their group; groups are sorted by name.

    Args:
        file: the list.
        key: of the configuration, which names the file.

    Raises:
        UserError: a missing column, an empty cell, a picture that is listed twice, or fewer than two groups.
    """
    file = Path(file).expanduser()
    rows = open_rows(file, key=key)
    _check_columns(file, rows.columns)
    found: dict[str, tuple[str, str, int]] = {}  # by the file itself: name, group, line
    for number, (image, group) in rows.read(COLUMNS):
        where = f"{file}, {rows.place.format(number)}"
        name, kind = _text(image), _text(group)
        if not name or "\0" in name:
            raise UserError(f"{where}: {shown(image)} is no picture's path")
        if not kind:
            raise UserError(f"{where}: {name} has no group; fill it in or remove the row")
        path = os.path.normpath(file.parent / name)
        if path in found:
            raise UserError(
                f"{where}: {name} is listed in {rows.place.format(found[path][2])} already; each picture counts once, "
                "in one group"
            )
        found[path] = (name, kind, number)
    names = sorted({kind for _, kind, _ in found.values()})
    if len(names) < 2:
        have = f"only the group {names[0]!r}" if names else "no rows"
        raise UserError(f"{key}={file} holds {have}: two groups or more are needed to compare them")
    place = {kind: index for index, kind in enumerate(names)}
    records = (Record(name, label=place[kind], split="test") for name, kind, _ in found.values())
    return Records.from_records(records, reader=FolderReader(file.parent), class_names=names, name=file.stem)


def _check_columns(file: Path, have: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in have]
    if missing:
        near = {column: get_close_matches(column, have, n=1) for column in missing}
        hints = [f" ({near[column][0]!r} should be called {column!r}?)" for column in missing if near[column]]
        raise UserError(
            f"{file}: no column {' and no column '.join(missing)}{''.join(hints)}; the first line has to name the "
            f"columns image,group. Found: {', '.join(map(repr, have))}"
        )


def _text(value: Any) -> str:
    """A cell as text, without the blanks around it; a missing one is empty."""
    if value is None or value != value or isinstance(value, bytes | list | dict):
        return ""
    text = str(value).strip()
    return text if is_unicode(text) else ""
