"""Unpacking archives from elsewhere: a member that would leave the folder, a link that leads out or an archive larger
than the disk is refused before anything is written.

`unpack` fills a folder of its own; `clipkit.data.storing.put_in_place` then moves the whole into a data set's folder.
"""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from clipkit.data.storing import Progress, megabytes, refuse_full_disk
from clipkit.errors import UserError

__all__ = ["DamagedArchive", "unpack"]

BLOCK = 4096  # what a file takes on disk at least: a million tiny members fill it, too
CHUNK = 1 << 20
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
)  # fmt: skip
JUNK = ("__MACOSX/*", "*/._*", "._*", "*/.DS_Store", ".DS_Store")  # what a Mac adds; ._a.jpg is no picture


class DamagedArchive(UserError):
    """What is there is no archive, or not as it was made."""

    def __init__(self, archive: Path, found: str) -> None:
        super().__init__(f"{archive} {found}. Remove it, and fetch it again")
        self.found = found


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: str | Path,
    folder: Path,
    *,
    members: Sequence[str] | None = None,
    inner: Sequence[str] = (),
    progress: Progress | None = None,
) -> None:
    """Write the files of a zip or tar archive (plain, gzip, bzip2, xz) below a folder.

    Links become copies of the file that they name; they may name files of the archive only. What a Mac adds to an
    archive is left out. Times and permissions are not taken over.

    Args:
        archive: told apart by content, not by name.
        folder: made if need be; files that it already holds are not replaced.
        members: patterns (`annotations/captions_*.json`); only what fits one of them is written. None: everything.
        inner: members, by their full name, that are archives, to be unpacked where they lie and then removed.
        progress: told MB written.

    Raises:
        UserError: the archive is none, damaged or encrypted; a member is unsafe; nothing fits `members`; the disk is
            too small or full. The folder may hold a part then.
    """
    archive = Path(archive)
    with _reading(archive):
        folder.mkdir(parents=True, exist_ok=True)
        with _open(archive, folder) as found:
            chosen = _choose(archive, found, folder, members)
            total, done = sum(member.size for member in chosen), 0
            for member in chosen:
                _write(archive, member, folder / member.name)
                done += member.size
                if progress is not None:
                    progress(f"unpacking {archive.name}, MB", megabytes(done), megabytes(total))
    for name in inner:
        unpack(folder / name, (folder / name).parent, progress=progress)
        (folder / name).unlink()


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise UserError(
            f"{archive} is damaged: {str(error) or type(error).__name__}. Remove it, and fetch it again"
        ) from error
    except OSError as error:
        refuse_full_disk(error, archive.parent)
        if isinstance(error, FileNotFoundError) and str(error.filename) == str(archive):
            raise UserError(f"{archive} is missing: it should hold files of the data set") from None
        raise UserError(f"{archive} cannot be unpacked: {error}") from error


@contextmanager
def _open(archive: Path, folder: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, checked one by one as they are met."""
    with archive.open("rb") as file:
        start = file.read(512)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(archive, opened)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            yield _tar_members(archive, opened_tar, folder)
    else:
        page = b"<html" in start.lower() or b"<!doctype" in start.lower()
        found = "a web page, as servers send it instead of an error or a log-in" if page else "no zip or tar archive"
        raise DamagedArchive(archive, f"is {found}, or it is damaged")


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for entry in opened.infolist():
        name = _safe(archive, entry.orig_filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, name, "is a link or a device, which no data set needs")
        if entry.flag_bits & 1:
            raise _refused(archive, name, "is encrypted")
        if not entry.is_dir():
            yield _Member(name, entry.file_size, lambda entry=entry: opened.open(entry))  # type: ignore[misc]  # bound now


def _tar_members(archive: Path, opened: tarfile.TarFile, folder: Path) -> Iterator[_Member]:
    files: dict[str, int] = {}
    for entry in opened:
        name = _safe(archive, entry.name)
        if entry.isdir():
            continue
        size = entry.size
        if entry.issym() or entry.islnk():
            named = _named_by(name, entry.linkname, hard=entry.islnk())
            if named not in files:
                what = f"is a link to {entry.linkname}, which is no file before it in the archive"
                raise _refused(archive, name, what)
            size = files[named]
        elif not entry.isfile():
            raise _refused(archive, name, "is a device or a pipe, which no data set needs")
        _ask_the_library(archive, entry, folder)
        files[name] = size
        yield _Member(name, size, lambda entry=entry: opened.extractfile(entry))  # type: ignore[misc]  # bound now
    _read_to_the_end(opened)


def _read_to_the_end(opened: tarfile.TarFile) -> None:
    """The checksum of gzip stands behind the archive's last block, where tarfile stops reading."""
    if opened.fileobj is not None:
        while opened.fileobj.read(CHUNK):
            pass


def _named_by(name: str, target: str, *, hard: bool) -> str | None:
    """The member that a link names, or None if that cannot be told from the names alone."""
    parts = list(PurePosixPath(target).parts)
    above = [] if hard else list(PurePosixPath(name).parent.parts)
    while parts and parts[0] == ".." and above:
        parts.pop(0)
        above.pop()
    safe = bool(parts) and ".." not in parts and not PurePosixPath(target).is_absolute()
    return PurePosixPath(*above, *parts).as_posix() if safe else None


def _ask_the_library(archive: Path, entry: tarfile.TarInfo, folder: Path) -> None:
    """A second opinion: Python's own filter for archives of data, where this Python has it."""
    judge = getattr(tarfile, "data_filter", None)
    if judge is not None:
        try:
            judge(entry, str(folder))
        except tarfile.TarError as error:
            raise _refused(archive, entry.name, f"is unsafe: {error}") from error


def _safe(archive: Path, name: str) -> str:
    """A member's name, if it stays inside any folder on any system (`C:x` and `..\\x` do not on Windows)."""
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts or "\0" in name or not name:
        raise _refused(archive, name, "would be written outside of the folder")
    return PurePosixPath(name).as_posix()


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"{archive}: the member {name!r} {why}. The archive is refused, and nothing of it is used")


def _choose(archive: Path, found: Iterator[_Member], folder: Path, members: Sequence[str] | None) -> list[_Member]:
    """The members to write; looks through the archive, and no further than to what the disk cannot hold."""
    free, needed = shutil.disk_usage(folder).free, 0
    chosen: list[_Member] = []
    names: set[str] = set()
    for member in found:
        if member.name in names:
            raise _refused(archive, member.name, "is there twice")
        names.add(member.name)
        wanted = members is None or any(fnmatchcase(member.name, pattern) for pattern in members)
        if not wanted or any(fnmatchcase(member.name, pattern) for pattern in JUNK):
            continue
        chosen.append(member)
        needed += -(-member.size // BLOCK) * BLOCK + BLOCK
        if needed > free:
            raise UserError(
                f"{archive}: unpacked, it takes {needed / 1e9:,.1f} GB or more, and {free / 1e9:,.1f} GB are free. "
                "Make room, or keep the data set on another disk"
            )
    if not chosen:
        what = f"no file like {', '.join(members)}" if members is not None else "no file"
        raise UserError(f"{archive} holds {what}: it is not the archive that was expected")
    return chosen


def _write(archive: Path, member: _Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, member  # no directories here
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        if file.tell() != member.size:
            found = f"{member.name} has {file.tell():,} of {member.size:,} bytes"
            raise DamagedArchive(archive, f"is damaged: {found}")
