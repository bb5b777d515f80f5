"""Bringing one part of a data set into its folder: an archive is downloaded, checked, unpacked, and put in place.

Run: python -m clipkit.fetch data=flickr8k data.root=/path/to/flickr8k

Every step leaves either nothing or what the next call goes on from. What was done stands in `ROOT/.clipkit-fetch/`:
a record of each archive with the files that it gave, so that a second call only looks whether they are still there.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from clipkit.data.checksums import Checksum, verify
from clipkit.data.download import download
from clipkit.data.hub_files import download_from_hub
from clipkit.data.storing import Progress, files_below, put_in_place, refuse_full_disk
from clipkit.data.unpacking import DamagedArchive, unpack
from clipkit.errors import UserError

__all__ = ["KINDS", "WORK", "Hub", "Item", "Outcome", "fetch_item", "is_complete"]

WORK = ".clipkit-fetch"
KINDS = ("sha256", "sha1", "md5")  # of checksums, best first
Say = Callable[[str], None]


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub, by patterns of their paths; `revision` may be a commit."""

    repository: str
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One part of a data set, as its YAML describes it.

    Args:
        name: of the archive or file, below the root.
        url: where it is. None: nobody may hand it on; it is used if a person has put it into the root.
        hub: in place of `url`.
        checksum, size: as published, the size in bytes; None where nothing is.
        unpack: whether it is an archive; a file is left as it is, in `into`.
        into: the folder below the root that it is unpacked in.
        members, inner: as in `unpack`: which of its files, and which of them are archives themselves.
        gives: files or folders below the root that come of it. One that is there without a record is someone else's
            work, and is left alone.
    """

    name: str
    url: str | None = None
    hub: Hub | None = None
    checksum: Checksum | None = None
    size: int | None = None
    unpack: bool = True
    into: str = ""
    members: tuple[str, ...] | None = None
    inner: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of an item: fetched now, complete before, left as it was found, or absent (a person must get it).

    `files` are those that came of it, by their path below the root, with their sizes.
    """

    state: Literal["fetched", "complete", "left", "absent"]
    files: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Record:
    """What is known of an item's progress, kept as JSON; `state` is downloaded, unpacked, placed, or "other": what was
    fetched is not what the item describes now."""

    file: Path
    state: str = ""
    source: str = ""
    downloaded: bool = False  # by this command, which may therefore remove the archive
    files: dict[str, int] = field(default_factory=dict)

    def save(self, state: str) -> None:
        self.state = state
        part = self.file.with_name(f"{self.file.name}.part")
        part.write_text(json.dumps({k: v for k, v in vars(self).items() if k != "file"}))
        part.replace(self.file)


def fetch_item(
    item: Item,
    root: Path,
    *,
    keep_archives: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> Outcome:
    """Bring an item below `root`, going on from wherever an earlier call was stopped.

    Of two processes at once the second waits. Archives that a person put there are never removed.

    Args:
        keep_archives: leave the archive in the root.
        overwrite: replace files that are there already and differ.
        progress: told MB. say: told, in sentences, about waiting and trouble.

    Raises:
        UserError: see `download`, `unpack` and `put_in_place`.
    """
    work = root / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work / f"{item.name}.lock", say):
            return _fetch(item, root, work, keep_archives, overwrite, progress, say)
    except OSError as error:
        refuse_full_disk(error, root)
        raise UserError(f"data.root={root} cannot be written: {error}") from error


def is_complete(item: Item, root: Path) -> bool:
    """Whether everything that came of an item is still where it was put; nothing is asked of a server."""
    record = _read(root / WORK / f"{item.name}.json", item)
    return record.state == "placed" and not _gone(record, root)


def _fetch(
    item: Item, root: Path, work: Path, keep: bool, overwrite: bool, progress: Progress | None, say: Say
) -> Outcome:
    record = _read(work / f"{item.name}.json", item)
    if record.state == "placed":
        gone = _gone(record, root)
        if not gone:
            return Outcome("complete", record.files)
        say(f"{len(gone):,} of {len(record.files):,} files of {item.name} are gone or changed ({gone[0]}): once more")
    found = [path for path in item.gives if (root / path).exists()]
    if not record.state and found and not overwrite:
        say(f"{', '.join(found)}: there already, and not by this command; left as it is (overwrite=true fetches it)")
        return Outcome("left")
    if item.hub is not None:
        record.files = download_from_hub(
            item.hub.repository, item.hub.revision, item.hub.files, root, overwrite=overwrite, progress=progress
        )
    elif not item.unpack:
        path = Path(item.into, item.name)
        _get(item, root / path, record, progress, say)
        record.files = {path.as_posix(): (root / path).stat().st_size}
    else:
        archive, ready = root / item.name, work / f"{item.name}.ready"
        if record.state != "unpacked" or not ready.is_dir():
            if item.url is None and not archive.exists():
                return Outcome("absent")
            _get(item, archive, record, progress, say)
            _unpack(item, archive, ready, record, progress)
        put_in_place(ready, root, overwrite=overwrite)
        record.save("placed")
        if record.downloaded and not keep:
            archive.unlink(missing_ok=True)
        return Outcome("fetched", record.files)
    record.save("placed")
    return Outcome("fetched", record.files)


def _get(item: Item, file: Path, record: _Record, progress: Progress | None, say: Say) -> None:
    """Download a file unless it is here; one that this command has not checked before is checked."""
    if file.exists():
        if record.state != "downloaded":
            verify(file, item.checksum, item.size, progress=progress)
        return
    assert item.url is not None, item
    room = (item.size or 0) if item.unpack else 0  # pictures hardly get smaller in an archive
    download(item.url, file, checksum=item.checksum, size=item.size, room=room, progress=progress, say=say)
    record.downloaded = True
    record.save("downloaded")


def _unpack(item: Item, archive: Path, ready: Path, record: _Record, progress: Progress | None) -> None:
    """Fill `ready` as the root should be; it is there only when it is complete, and recorded before."""
    unfinished = ready.with_name(f"{item.name}.unpacking")
    for folder in (unfinished, ready):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unpack(archive, unfinished / item.into, members=item.members, inner=item.inner, progress=progress)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk gets its room back
        if isinstance(error, DamagedArchive) and record.downloaded:
            archive.unlink(missing_ok=True)  # of no use, and nobody's but ours
            raise UserError(f"what {item.url} sent {error.found}. It was removed: run this command again") from error
        raise
    record.files = files_below(unfinished)
    record.save("unpacked")
    os.replace(unfinished, ready)


def _read(file: Path, item: Item) -> _Record:
    """The record of an item; an empty one where there is none, or of another version of it."""
    source = repr((item.checksum, item.hub, item.into, item.members, item.inner))
    try:
        known: dict[str, Any] = json.loads(file.read_text())
        record = _Record(file, **known)
    except (OSError, ValueError, TypeError):
        return _Record(file, source=source)
    return record if record.source == source else _Record(file, state="other", source=source)


def _gone(record: _Record, root: Path) -> list[str]:
    def there(path: str, size: int) -> bool:
        try:
            return (root / path).stat().st_size == size
        except OSError:
            return False

    return [path for path, size in record.files.items() if not there(path, size)]


@contextmanager
def _locked(file: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Let one process at a time inside; the others wait, and say so. A process that dies lets go."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is at work here ({file}); waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
