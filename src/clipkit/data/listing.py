"""What data sets on disk have in common: places to look in, pictures below a folder, names from lists, `.mat` files."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from clipkit.data.records import SPLITS, Record
from clipkit.errors import UserError

__all__ = ["Inputs", "check_classes", "check_name", "check_root", "is_unicode", "read_mat", "read_structs", "shown"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
USUAL = re.compile(r"[^/\\\0:.][^/\\\0:]*(/[^/\\\0:.][^/\\\0:]*)*")  # nearly all names: nothing to look at twice
DRIVE = re.compile(r"[A-Za-z]:")
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


class Inputs:
    """Asks the disk on behalf of a reader, and remembers what it was asked about, found or not.

    Iterating gives the paths, for `Records.reading`: while none of them changes, appears or vanishes, the reader would
    find the same.
    """

    def __init__(self) -> None:
        self._paths: dict[Path, None] = {}

    def __iter__(self) -> Iterator[Path]:
        return iter(self._paths)

    def add(self, path: Path) -> Path:
        """Remember a path, and hand it back."""
        self._paths[path] = None
        return path

    def is_file(self, path: Path) -> bool:
        return self.add(path).is_file()

    def is_dir(self, path: Path) -> bool:
        return self.add(path).is_dir()

    def first(self, paths: Iterable[Path]) -> Path | None:
        """The first of several places that something may lie in."""
        return next((path for path in paths if self.add(path).exists()), None)

    def files(self, folder: Path, pattern: str) -> list[Path]:
        """The files in a folder that match a glob pattern, sorted; [] if there is no folder."""
        return sorted(file for file in self.add(folder).glob(pattern) if file.is_file())

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted, hidden ones left out."""
        return sorted(folder / entry.name for entry in self._entries(folder) if _is_dir(entry))

    def pictures(self, folder: Path, root: Path, *, deep: bool = True) -> list[str]:
        """The picture files in a folder (and below it), relative to `root`, sorted; hidden files and folders left out.

        Links to folders are followed, but never to where the search has been.
        """
        found, been, stack = [], {os.path.realpath(folder)}, [folder]
        while stack:
            here = stack.pop()
            prefix = here.relative_to(root).as_posix()
            for entry in self._entries(here):
                if _is_dir(entry):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else ""
                    if deep and real not in been:
                        stack.append(here / entry.name)
                    been |= {real} - {""}
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    found.append(entry.name if prefix == "." else f"{prefix}/{entry.name}")
        return sorted(found, key=lambda name: name.split("/"))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.add(folder)) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error
        for entry in found:
            if not is_unicode(entry.name):
                name = os.fsencode(entry.name)
                raise UserError(f"{folder} holds the file name {name!r}, which is not UTF-8; rename it")
        return found


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """Also through a link; a link in a circle is none, where `entry.is_dir` raises."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def check_root(root: str | Path, hint: str) -> Path:
    """`root` as a path; `UserError` with `hint` (layouts and sources) unless it is a folder."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; {hint}")
    return root


def check_name(name: object, file: Path, place: str, number: int) -> str:
    """A picture's path as a list gives it, in one spelling: `/` between parts (also for `\\`), no `.` among them.

    Links on disk may lead anywhere: only what the list says is looked at.

    Args:
        name: what was found.
        file, place, number: where, for the message; `place` has `{}` for the number ("line {}", "images[{}]").

    Raises:
        UserError: it is no text, is absolute, or leads out of the data set's folder.
    """
    if isinstance(name, str) and USUAL.fullmatch(name) and not name.isspace() and is_unicode(name):
        return name
    text = name if isinstance(name, str) and is_unicode(name) else ""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    if not text.strip() or not parts or parts[0][0] == "/" or ".." in parts or "\0" in text or DRIVE.match(text):
        raise UserError(f"{file}, {place.format(number)}: {shown(name)} is no file name inside the data set's folder")
    return "/".join(parts)


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and foreign file names give, but no table can hold."""
    return text.isascii() or HALF.search(text) is None


def shown(value: object) -> str:
    """What was found, short enough for a message."""
    text = repr(value[:200] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def check_classes(origin: Path, class_names: Sequence[str], records: Iterable[Record]) -> list[str]:
    """Notes that name the classes which a split has no picture of; such a class is kept.

    Raises:
        UserError: a class has no picture in any split.
    """
    used: dict[str, set[int | None]] = {}
    for record in records:
        used.setdefault(record.split, set()).add(record.label)
    anywhere = set[int | None]().union(*used.values())
    empty = [name for number, name in enumerate(class_names) if number not in anywhere]
    if empty:
        raise UserError(f"{origin}: {_lacking(empty, class_names, 'no picture')}")
    notes = []
    for split in SPLITS:
        missing = [name for number, name in enumerate(class_names) if number not in used.get(split, anywhere)]
        notes += [_lacking(missing, class_names, f"no picture in {split}")] if missing else []
    return notes


def _lacking(some: Sequence[str], of: Sequence[str], what: str) -> str:
    return f"{len(some)} of {len(of)} classes have {what}: {', '.join(some[:10])}{' …' if len(some) > 10 else ''}"


def read_mat(file: Path, variable: str) -> NDArray[Any]:
    """One variable of a MATLAB file as a flat array; `UserError` if the file is damaged or lacks it."""
    try:
        content = loadmat(file, squeeze_me=True)
    except Exception as error:  # torn files raise a dozen kinds: struct, zlib, type, memory and MatReadErrors
        raise UserError(f"{file} cannot be read as a MATLAB file: {str(error) or type(error).__name__}") from error
    if variable not in content:
        found = ", ".join(name for name in content if not name.startswith("__"))
        raise UserError(f"{file} has no variable {variable}; found: {found or 'none'}")
    return np.atleast_1d(content[variable])


def read_structs(file: Path, variable: str, fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """The named fields of a struct array, element by element; `UserError` if one is missing."""
    structs = read_mat(file, variable)
    names = structs.dtype.names or ()
    missing = [field for field in fields if field not in names]
    if missing:
        found = ", ".join(names) or "no fields"
        raise UserError(f"{file}: the structs of {variable} lack {', '.join(missing)}; found: {found}")
    return [tuple(element[field] for field in fields) for element in structs]
