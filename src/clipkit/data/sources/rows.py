"""Rows of a CSV, TSV, JSONL or Parquet file, one after the other, each with its place in the file.

Nothing but the columns asked for is kept, and no more than a part of the file is in memory at a time.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.data.listing import shown
from clipkit.errors import UserError

__all__ = ["KINDS", "Row", "Rows", "open_rows"]

Row = tuple[int, list[Any]]  # line or row number, the cells of the columns asked for
BATCH = 8192  # rows of a Parquet file read at a time


class Rows(Protocol):
    """A file of rows.

    Attributes:
        place: what a row's number counts, with `{}` for it.
        columns: the names of all columns.
    """

    place: str
    columns: list[str]

    def read(self, columns: Sequence[str]) -> Iterator[Row]:
        """The cells of these columns, row by row."""


def open_rows(file: Path, *, key: str = "data.file") -> Rows:
    """The rows of a file, by its ending.

    Args:
        file: what to read.
        key: of the configuration, which names the file.

    Raises:
        UserError: it is missing, of another kind, damaged, or holds nothing. Damage further down, such as text that is
            not UTF-8, shows when that row is read, and is named with its line.
    """
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"{key}={file}: unknown kind {file.suffix!r}; known: {', '.join(KINDS)}")
    if not file.exists():
        raise UserError(f"{key}={file}: no such file")
    return kind(file)


class Delimited:
    """Cells between commas or tabs under a header; those with a separator, line break or quotation mark are quoted."""

    place = "line {}"

    def __init__(self, file: Path, separator: str) -> None:
        self.file, self.separator = file, separator
        _, self.columns = next(self._rows(), (0, []))
        if not self.columns:
            raise UserError(f"{file} cannot be read as {_kind(file)}: it is empty")

    def read(self, columns: Sequence[str]) -> Iterator[Row]:
        where = [self.columns.index(column) for column in columns]
        width = len(self.columns)
        rows = self._rows()
        next(rows)
        for number, cells in rows:
            if len(cells) != width:
                raise UserError(
                    f"{self.file}, line {number}: {len(cells)} cells, but the header has {width}; a cell that holds "
                    f"{self.separator!r} needs quotation marks around it"
                )
            yield number, [cells[place] for place in where]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, with the line they start in."""
        reader = csv.reader((text for _, text in _lines(self.file)), delimiter=self.separator, strict=True)
        number = 1
        try:
            for cells in reader:
                if cells and (len(cells) > 1 or cells[0].strip()):
                    yield number, cells
                number = reader.line_num + 1
        except csv.Error as error:
            hint = "Is a quotation mark not closed, or, inside a quoted cell, not written twice?"
            if "new-line" in str(error):
                error, hint = csv.Error("its lines end in carriage returns alone"), "Save it with Unix or Windows ones."
            raise UserError(
                f"{self.file}, line {number} cannot be read as {_kind(self.file)}: {error}. {hint}"
            ) from error


class JsonLines:
    """One JSON object a line. The first one says which columns there are."""

    place = "line {}"

    def __init__(self, file: Path) -> None:
        self.file = file
        _, first = next(self._objects(), (0, {}))
        if not first:
            raise UserError(f"{file} cannot be read as JSONL: it holds no object")
        self.columns = list(first)

    def read(self, columns: Sequence[str]) -> Iterator[Row]:
        for number, entry in self._objects():
            try:
                yield number, [entry[column] for column in columns]
            except KeyError as error:
                raise UserError(f"{self.file}, line {number} has no {error}; found: {', '.join(entry)}") from None
            if "split" in entry and "split" not in self.columns:
                raise UserError(f"{self.file}, line {number} has a 'split', which line 1 has not: give all or none one")

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in _lines(self.file):
            if text.isspace():
                continue
            try:
                entry = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.file}, line {number} cannot be read as JSON: {error}") from error
            if not isinstance(entry, dict):
                raise UserError(f"{self.file}, line {number} cannot be read: a JSON object is expected")
            yield number, entry


class ParquetRows:
    """A Parquet file, some thousand rows at a time."""

    place = "row {} (counted from 0)"

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.source = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        self.columns = list(self.source.schema_arrow.names)

    def read(self, columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        wanted = list(dict.fromkeys(columns))
        try:
            for batch in self.source.iter_batches(BATCH, columns=wanted, use_threads=False):
                for cells in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                    yield number, list(cells)
                    number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(error, f" from row {number}") from error

    def _damaged(self, error: Exception, where: str = "") -> UserError:
        return UserError(f"{self.file} cannot be read as Parquet{where}: {error}")


KINDS: dict[str, Callable[[Path], Rows]] = {
    ".csv": partial(Delimited, separator=","),
    ".tsv": partial(Delimited, separator="\t"),
    ".jsonl": JsonLines,
    ".parquet": ParquetRows,
}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, as UTF-8, without a byte order mark; decoded one by one, so that a wrong one is named."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    found = shown(line[max(0, error.start - 20) : error.start + 20])
                    raise UserError(
                        f"{file}, line {number} cannot be read: not UTF-8 text ({error.reason}) at {found}; "
                        "save the file as UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read as {_kind(file)}: {error.strerror or error}") from error


def _kind(file: Path) -> str:
    return file.suffix[1:].upper()
