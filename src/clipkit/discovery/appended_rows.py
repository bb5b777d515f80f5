"""Rows of numbers in a flat file that only grows: the embeddings of a novelty store (`store.py`)."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipkit.errors import UserError

__all__ = ["AppendedRows"]


class AppendedRows:
    """[rows, width] float32. Whoever commits rows says how many of them count; what lies beyond does not.

    Methods let `OSError` through.

    Args:
        file: the place; it need not exist as long as no row counts.
        width: numbers in a row.
    """

    def __init__(self, file: Path, width: int) -> None:
        self.file, self.width = file, width

    def goes_beyond(self, rows: int) -> bool:
        """Whether the file is longer than the rows that count."""
        return self._size() > rows * self.width * 4

    def check(self, rows: int) -> None:
        """`UserError` if the file holds fewer rows than count."""
        if self._size() < rows * self.width * 4:
            raise UserError(
                f"{self.file} holds {self._size() // (self.width * 4)} of the {rows} embeddings that were stored: it "
                "was cut short or exchanged. Bring it back from a copy, or move the folder away and score its "
                "pictures again"
            )

    def cut(self, rows: int) -> None:
        """Take away what lies beyond the rows that count."""
        os.truncate(self.file, rows * self.width * 4)

    def append(self, values: NDArray[np.float32]) -> None:
        """Write rows [n, width] at the end and down to the disk, before anybody says that they count."""
        is_new = not self.file.exists()
        with self.file.open("ab") as file:
            file.write(np.ascontiguousarray(values).data)
            file.flush()
            os.fsync(file.fileno())
        if is_new and hasattr(os, "O_DIRECTORY"):  # the file's name has to last, too; Windows opens no folders
            folder = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self, wanted: ArrayLike, *, rows: int) -> NDArray[np.float32]:
        """[n] row numbers -> [n, width], a copy; only these are read from the disk. `rows` is how many count."""
        numbers = np.asarray(wanted, dtype=np.int64)
        if numbers.ndim != 1 or ((numbers < 0) | (numbers >= rows)).any():
            raise ValueError(f"a list of row numbers is expected, each from 0 to below {rows}")
        self.check(rows)
        if not len(numbers):
            return np.empty((0, self.width), np.float32)
        mapped = np.memmap(self.file, dtype=np.float32, mode="r", shape=(rows, self.width))
        return np.array(mapped[numbers])

    def _size(self) -> int:
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0
