"""Pictures inside Parquet files, as data sets on the Hugging Face hub have them: a column of encoded bytes."""

import io
import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from clipkit.errors import UserError
from clipkit.pictures import decode

__all__ = ["ParquetReader", "read_labels"]

ROW_GROUPS_KEPT = 2  # a data set's writer puts 100 pictures into one: neighbours are read once


class ParquetReader:
    """Serves "FILE#ROW": a row of a Parquet file below a folder.

    Files are opened when first asked for, by each process for itself; the last row groups read are kept.

    Args:
        root: the folder that names are relative to.
        column: bytes of encoded pictures, or structs with a field `bytes`.
    """

    _process: int  # whose files are open

    def __init__(self, root: str | Path, column: str = "image") -> None:
        self.root, self.column = Path(root), column
        self._forget()

    def spec(self) -> dict[str, str]:
        """What makes this reader again."""
        return {"_target_": "clipkit.data.parquet.ParquetReader", "root": str(self.root), "column": self.column}

    def __call__(self, name: str) -> Image.Image:
        return decode(Image.open(io.BytesIO(self.read(name))))

    def read(self, name: str) -> bytes:
        """The encoded bytes of one picture; raises `OSError` if there are none."""
        file, _, row = name.rpartition("#")
        with self._lock:
            value = self._row(file, int(row))
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"{self.root / file} has no bytes in row {row}")
        return data

    def stamp(self, name: str) -> str:
        try:
            status = os.stat(self.root / name.rpartition("#")[0])
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def _row(self, file: str, row: int) -> Any:
        if self._process != os.getpid():
            self._files.clear()
            self._groups.clear()
            self._process = os.getpid()
        if file not in self._files:
            source = pq.ParquetFile(self.root / file)
            counts = [source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups)]
            self._files[file] = (source, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        source, starts = self._files[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        if not 0 <= group < len(starts) - 1:
            raise FileNotFoundError(f"{self.root / file} has no row {row}")
        if (file, group) not in self._groups:
            table = source.read_row_group(group, columns=[self.column], use_threads=False)  # a fork has no threads
            self._groups[file, group] = table[self.column]
            while len(self._groups) > ROW_GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, group))
        return self._groups[file, group][row - int(starts[group])].as_py()

    def _forget(self) -> None:
        self._files: dict[str, tuple[pq.ParquetFile, NDArray[np.int64]]] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._process = -1
        self._lock = threading.Lock()  # decoding uses threads

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a fresh reader of the same files


def read_labels(file: Path, *, image: str = "image", label: str = "label") -> tuple[list[Any], list[str]]:
    """A column of class numbers, and the names that the `datasets` library stores with it ([] if there are none).

    Raises:
        UserError: the file is damaged, or lacks the column of labels or that of pictures.
    """
    try:
        source = pq.ParquetFile(file)
        found = source.schema_arrow.names
        missing = [column for column in (image, label) if column not in found]
        if missing:
            raise UserError(f"{file} has no column {', '.join(missing)}; found: {', '.join(found)}")
        labels = source.read(columns=[label], use_threads=False)[label].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
    try:
        metadata = json.loads((source.schema_arrow.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        names = []
    return labels, [str(name) for name in names] if isinstance(names, list) else []
