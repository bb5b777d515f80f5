"""Pictures inside local tar archives, found by one pass over the headers and then read by seeking.

Run: python -m clipkit.evaluate model=emoji_clip data=webdataset data.test_root=/path/to/shards
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.shards import reason_of
from clipkit.data.tar_samples import PICTURES, Tar, captions_of, decode_picture, picture_of, read_samples, stable_hash
from clipkit.errors import UserError

__all__ = ["TarReader", "index_tars"]

OPEN_FILES = 32


class TarReader:
    """Serves "SHARD#KEY.jpg" by seeking. Each process opens the archives for itself.

    Args:
        paths: of the archives; shards: what names call them.
        names: of the members that it serves, in any order.
        places: [N, 3] for each name the archive's number, the offset and the number of bytes.
        faults: members that are known to be useless, with the reason: opening them raises it.
    """

    _process: int  # whose files are open

    def __init__(
        self, paths: Sequence[Path], names: Sequence[str], places: NDArray[np.int64], faults: dict[str, str]
    ) -> None:
        hashes = np.array(
            [stable_hash(name) for name in names], np.int64
        )  # arrays: workers share them, dicts are copied
        order = np.argsort(hashes, kind="stable")
        self._set(tuple(paths), hashes[order], places.reshape(-1, 3)[order], dict(faults))

    def __call__(self, name: str) -> Image.Image:
        return decode_picture(self.read(name))

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            OSError: there is none, or the archive is gone or shorter than it was.
        """
        if name in self.faults:
            raise OSError(self.faults[name])
        archive, offset, size = self._place(name)
        with self._lock:
            file = self._open(archive)
            file.seek(offset)
            data: bytes = file.read(size)
        if len(data) < size:
            raise OSError(f"{self.paths[archive]} ends before {name}")
        return data

    def stamp(self, name: str) -> str:
        try:
            archive, offset, size = self._place(name)
            status = os.stat(self.paths[archive])
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}:{offset}:{size}"

    def _place(self, name: str) -> tuple[int, int, int]:
        wanted = stable_hash(name)
        row = int(np.searchsorted(self.hashes, wanted))
        if row == len(self.hashes) or self.hashes[row] != wanted:
            raise FileNotFoundError(f"no archive has {name}")
        archive, offset, size = (int(value) for value in self.places[row])
        return archive, offset, size

    def _open(self, archive: int) -> Any:
        if self._process != os.getpid():
            self._files.clear()
            self._process = os.getpid()
        if archive not in self._files:
            while len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[archive] = open(self.paths[archive], "rb")  # noqa: SIM115  # closed when others take its place
        return self._files[archive]

    def _set(
        self, paths: tuple[Path, ...], hashes: NDArray[np.int64], places: NDArray[np.int64], faults: dict[str, str]
    ) -> None:
        self.paths, self.hashes, self.places, self.faults = paths, hashes, places, faults
        self._files: dict[int, Any] = {}
        self._process = -1
        self._lock = threading.Lock()  # decoding uses threads

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "hashes": self.hashes, "places": self.places, "faults": self.faults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**state)


def index_tars(
    paths: Sequence[Path], shards: Sequence[str], *, caption_key: str
) -> tuple[list[tuple[str, tuple[str, ...]]], TarReader]:
    """Go through archives once.

    Args:
        paths: of local archives; shards: what to call them in names.
        caption_key: where a `.json` keeps its caption.

    Returns:
        (name, captions) of each sample, in order, and the reader of its picture. A sample without a picture or without
        a usable caption is there too: opening it raises the reason.

    Raises:
        UserError: an archive is missing or damaged: numbers measured on a part of a set could not be compared.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    places: dict[str, tuple[int, int, int]] = {}
    faults: dict[str, str] = {}
    for archive, (path, shard) in enumerate(zip(paths, shards, strict=True)):
        try:
            with path.open("rb") as file:
                for sample in read_samples(Tar(file, seeks=True), shard, pictures=False):
                    suffix = next((suffix for suffix in PICTURES if suffix in sample.members), "")
                    name = f"{sample.name}.{suffix}" if suffix else sample.name
                    captions: tuple[str, ...] = ("(no caption)",)  # of those that are useless
                    try:
                        if not suffix:
                            picture_of(sample.parts)  # says what is missing
                        if name in places:
                            name = f"{name} again"
                            raise ValueError("the archive has this key twice")
                        captions = captions_of(sample.parts, caption_key)
                        picture = sample.members[suffix]
                        places[name] = archive, picture.offset, picture.size
                    except ValueError as error:
                        faults[name] = str(error)
                    found.append((name, captions))
        except OSError as error:
            raise UserError(f"{path}: {reason_of(error)}; a shard to evaluate on must be whole") from error
    reader = TarReader(paths, list(places), np.array(list(places.values()), np.int64), faults)
    return found, reader
