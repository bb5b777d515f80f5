"""Labels that a person gives: as a list, or in a file with one a line."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipkit.errors import UserError

__all__ = ["SUFFIXES", "label_file", "read_labels"]

SUFFIXES = (".txt", ".csv", ".tsv")
COLUMN = "label"
Numbered = tuple[int, str]  # a line or a place in the list, counted from 1, and what stands there


def label_file(given: Sequence[object]) -> Path | None:
    """The file that a list of labels names, if it is a single entry that ends like one, or is one."""
    if len(given) != 1 or not isinstance(given[0], str):
        return None
    path = Path(given[0]).expanduser()
    return path if path.suffix.lower() in SUFFIXES or path.is_file() else None


def read_labels(given: Sequence[object]) -> tuple[str, ...]:
    """Two or more labels, each once, without space around them.

    Args:
        given: the labels; or the name of one file: `.csv` and `.tsv` have a column `label`, others one label a line.

    Raises:
        UserError: an empty, repeated or unreadable label, with its line; a file that is missing or empty.
    """
    file = label_file(given)
    if file is None:
        where, place, unit = "labels", "labels", "number"
        listed = [(number, _text(entry, number)) for number, entry in enumerate(given, 1)]
    else:
        where, place, unit = f"labels={file}", str(file), "line"
        listed = _table(file) if file.suffix.lower() in (".csv", ".tsv") else _lines(file)
    seen: dict[str, int] = {}
    for number, text in listed:
        label = text.strip()
        if not label:
            raise UserError(f"{place}, {unit} {number} is empty: a label is expected there")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in label):
            raise UserError(f"{place}, {unit} {number}: {_shown(label)} holds a tab or another control character")
        if label in seen:
            before = f"{unit} {seen[label]} already: give each label once"
            raise UserError(f"{place}, {unit} {number}: {_shown(label)} stands in {before}")
        seen[label] = number
    if not seen:
        raise UserError(f"{where} holds no labels: two or more are needed")
    if len(seen) == 1:
        raise UserError(
            f"{where}: {_shown(next(iter(seen)))} is the only label, and would get every picture: give two or more"
        )
    return tuple(seen)


def _text(entry: object, number: int) -> str:
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        raise UserError(f"labels, number {number} is {_shown(entry)}, which is no text; put it in quotes")
    return str(entry)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _lines(file: Path) -> list[Numbered]:
    """The lines of a text file; those after the last label do not count."""
    lines = _decoded(file)
    while lines and not lines[-1].strip():
        lines.pop()
    return list(enumerate(lines, 1))


def _table(file: Path) -> list[Numbered]:
    """The column `label` of a table with a header; empty rows at the end do not count."""
    rows = csv.reader(_with_ends(_decoded(file)), delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
    found: list[Numbered] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        if COLUMN not in header:
            raise UserError(f"{file}, line 1: no column {COLUMN}; columns found: {', '.join(header) or 'none'}")
        column = header.index(COLUMN)
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(f"{file}, line {rows.line_num}: {len(row)} columns, but the header has {len(header)}")
            found.append((rows.line_num, row[column] if row else ""))
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num}: no table row: {error}") from error
    while found and not found[-1][1].strip():
        found.pop()
    return found


def _with_ends(lines: Iterable[str]) -> Iterable[str]:
    return (f"{line}\n" for line in lines)


def _decoded(file: Path) -> list[str]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"labels={file} cannot be read: {error.strerror or error}") from error
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise UserError(f"{file}, line {number}: not UTF-8 text; save the file as UTF-8") from None
    return lines
