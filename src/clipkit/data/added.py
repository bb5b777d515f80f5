"""Pictures that join a data set from elsewhere: those that were found to be a new class.

Made by: python -m clipkit.discover action=accept …; used by any command with data.manifest=…
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from clipkit.data.images import EncodedReader, FolderReader, ImageReader
from clipkit.data.records import Records
from clipkit.errors import UserError

__all__ = ["WithFiles", "add_pictures", "added_names"]

SHOWN = 5
FILES = FolderReader("")


class WithFiles:
    """A reader that also opens some files, by their absolute names.

    Args:
        reader: of all other names.
        files: the absolute names.
    """

    def __init__(self, reader: ImageReader, files: frozenset[str]) -> None:
        self.reader, self.files = reader, files
        if hasattr(reader, "root"):
            self.root = reader.root

    def __call__(self, name: str) -> Image.Image:
        return self._of(name)(name)

    def stamp(self, name: str) -> str:
        return self._of(name).stamp(name)

    def _of(self, name: str) -> ImageReader:
        return FILES if name in self.files else self.reader


class WithEncodedFiles(WithFiles):
    """The same where the other reader gives bytes, too."""

    reader: EncodedReader

    def read(self, name: str) -> bytes:
        """The encoded bytes of a picture."""
        return FILES.read(name) if name in self.files else self.reader.read(name)


def add_pictures(
    records: Records, pictures: Mapping[str, Mapping[str, Sequence[str]]], *, own: Sequence[str], origin: str
) -> Records:
    """The records, and these files: classes that the data set does not have come after its own.

    Files that are pictures of the data set itself are left out, with a note: they would train and test at once.

    Args:
        records: the chosen part of a data set.
        pictures: absolute file names by split and class.
        own: the names of all pictures of the data set, as its reader takes them.
        origin: who names them, for messages.

    Raises:
        UserError: a file is not there.
    """
    root = getattr(records.reader, "root", None)
    places = set() if root is None else {os.path.realpath(os.path.join(root, name)) for name in own}
    listed = [(split, label, name) for split, by in pictures.items() for label, names in by.items() for name in names]
    rows = [row for row in listed if os.path.realpath(row[2]) not in places]
    if len(rows) < len(listed):
        left_out = len(listed) - len(rows)
        records = records.noting([f"{left_out} added pictures are pictures of the data set itself, and are left out"])
    missing = [name for _, _, name in rows if not os.path.isfile(name)]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (" …" if len(missing) > SHOWN else "")
        raise UserError(f"{origin}: {len(missing)} of {len(rows)} added pictures are not there any more: {shown}")
    names = list(dict.fromkeys([*records.class_names, *(label for _, label, _ in rows)]))
    place = {name: number for number, name in enumerate(names)}
    first_id, first_group = (int(column.max(initial=-1)) + 1 for column in (records.image_ids, records.groups))
    count = np.arange(len(rows))
    columns = {
        "image": pa.array([name for _, _, name in rows], pa.large_string()),
        "captions": pa.array([[] for _ in rows], pa.large_list(pa.large_string())),
        "label": pa.array([place[label] for _, label, _ in rows], pa.int64()),
        "split": pa.array([split for split, _, _ in rows], pa.string()).dictionary_encode(),
        "subset": pa.array([""] * len(rows), pa.string()).dictionary_encode(),
        "group": pa.array(first_group + count),
        "carved": pa.array([False] * len(rows)),
        "image_id": pa.array(first_id + count),
    }
    table = pa.concat_tables([records.table, pa.table(columns).select(records.table.column_names)])
    kind = WithEncodedFiles if isinstance(records.reader, EncodedReader) else WithFiles
    reader = kind(records.reader, frozenset(name for _, _, name in rows))
    return replace(records, table=table.unify_dictionaries().combine_chunks(), reader=reader, class_names=tuple(names))


def added_names(records: Records) -> frozenset[str]:
    """The names of the pictures that were added to a data set."""
    reader = records.reader
    return reader.files if isinstance(reader, WithFiles) else frozenset()
