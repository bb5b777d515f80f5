"""A table that appears in its place when it is complete, written row by row."""

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from clipkit.errors import UserError

__all__ = ["Rows", "csv_file"]


class Rows(Protocol):
    """What rows are handed to."""

    def writerow(self, row: Iterable[object], /) -> object: ...

    def writerows(self, rows: Iterable[Iterable[object]], /) -> object: ...


@contextmanager
def csv_file(path: Path) -> Iterator[Rows]:
    """Take rows, and move the file to its place if all went well; `UserError` if it cannot be written."""
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            yield csv.writer(file)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
