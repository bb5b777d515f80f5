"""What fetching does on the disk: progress in MB, a full disk in words, and moving what is complete into place."""

import errno
import filecmp
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from clipkit.errors import UserError

__all__ = ["Progress", "files_below", "megabytes", "put_in_place", "refuse_full_disk"]

Progress = Callable[[str, int, int], None]  # what, MB done, MB in all


def put_in_place(unpacked: Path, root: Path, *, overwrite: bool = False) -> None:
    """Move everything in a folder below another one, whole folders at once where the other has none of that name.

    Files that are there already stay if they are the same, to the byte; if not, nothing is moved.

    Args:
        unpacked: emptied and removed.
        root: on the same disk, or not.
        overwrite: replace files that differ.

    Raises:
        UserError: files that differ are there already, or the disk is full.
    """
    try:
        clashes = [] if overwrite else list(_clashes(unpacked, root))
        if clashes:
            shown = ", ".join(map(str, clashes[:3])) + (" …" if len(clashes) > 3 else "")
            raise UserError(
                f"{len(clashes)} file(s) in {root} differ from those fetched, and are kept: {shown}. Move them away, "
                "or add overwrite=true to replace them"
            )
        _merge(unpacked, root, overwrite)
    except OSError as error:
        refuse_full_disk(error, root)
        raise UserError(f"what was unpacked cannot be moved to {root}: {error}") from error


def refuse_full_disk(error: OSError, place: Path) -> None:
    """Raise a `UserError` if that is what the error says; return otherwise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(
            f"{place}: the disk is full. Make room, then run the same command again: it goes on from here"
        ) from error


def megabytes(size: int) -> int:
    """Bytes in MB (10⁶), at least 1 for anything."""
    return max(size // 1_000_000, int(size > 0))


def _clashes(unpacked: Path, root: Path) -> Iterator[Path]:
    """What stands in the way in `root`: files with another content, files for folders, folders for files."""
    for entry in sorted(unpacked.iterdir()):
        there = root / entry.name
        if entry.is_dir() and there.is_dir():
            yield from _clashes(entry, there)
        elif there.exists() or there.is_symlink():
            same = entry.is_file() and there.is_file() and filecmp.cmp(entry, there, shallow=False)
            if not same:
                yield there


def _merge(source: Path, target: Path, overwrite: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if entry.is_dir():
            if there.is_file():
                there.unlink()  # only with overwrite: a clash otherwise
            if there.is_dir() or not _moved(entry, there):
                _merge(entry, there, overwrite)
        elif there.is_dir():
            raise UserError(f"{there} is a folder, where a file belongs: move it away")
        elif there.exists() and not overwrite:
            entry.unlink()  # the same
        elif not _moved(entry, there):
            part = there.with_name(f".{there.name}.part")
            shutil.copyfile(entry, part)
            os.replace(part, there)
            entry.unlink()
    source.rmdir()


def _moved(entry: Path, there: Path) -> bool:
    """Move at once; False if the other place is on another disk (a folder of the root may be a link)."""
    try:
        os.replace(entry, there)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def files_below(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size, by its path relative to it."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()
    }
