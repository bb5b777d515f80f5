"""Where pictures are read from: a folder, or one archive file. Each reader opens a record's `image` by its name."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from clipkit.pictures import decode

__all__ = ["EncodedReader", "FolderReader", "ImageReader", "ZipReader"]


class ImageReader(Protocol):
    def __call__(self, name: str) -> Image.Image:
        """The decoded picture, upright; raises `OSError` (or another of PIL's errors) if it cannot be read."""

    def stamp(self, name: str) -> str:
        """A text that changes when the picture's content does."""


@runtime_checkable
class EncodedReader(ImageReader, Protocol):
    """A reader of picture files, which can also give a file's bytes: they are decoded faster from there."""

    def read(self, name: str) -> bytes:
        """The encoded bytes of a picture; raises `OSError` if there are none."""


class FolderReader:
    """Picture files below a folder; absolute names stand as they are."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def spec(self) -> dict[str, str]:
        """What makes this reader again."""
        return {"_target_": "clipkit.data.images.FolderReader", "root": str(self.root)}

    def __call__(self, name: str) -> Image.Image:
        return decode(Image.open(self.root / name))

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def stamp(self, name: str) -> str:
        try:
            status = os.stat(os.path.join(self.root, name))  # a third of the time that joining Paths takes
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"


class ZipReader:
    """Pictures inside one zip archive. Each process opens the archive for itself: file positions are not shared."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        self._process = -1

    def __call__(self, name: str) -> Image.Image:
        return decode(Image.open(io.BytesIO(self.read(name))))

    def read(self, name: str) -> bytes:
        """The bytes of one entry; raises `OSError` if there is none."""
        try:
            return self._open().read(name)
        except KeyError:
            raise FileNotFoundError(f"{self.path} has no entry {name}") from None

    def stamp(self, name: str) -> str:
        try:
            return f"{self._open().getinfo(name).CRC:08x}"
        except KeyError:
            return "missing"

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_archive": None, "_process": -1}


def fingerprint(parts: list[str]) -> str:
    """One sha256 of many strings, told apart by length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
