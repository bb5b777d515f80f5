"""Shards, the tar archives of a sharded data set: their names, opening them wherever they lie, copies in the cache.

Run: python -m clipkit.train data=webdataset data.root='/path/to/{00000..00012}.tar'
"""

import hashlib
import io
import itertools
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from clipkit.errors import UserError

__all__ = ["Shards", "check_opener", "copy_shard", "is_remote", "list_shards", "open_shard", "reason_of", "short_names"]

LAYOUTS = (
    "expected a folder with *.tar in it, one archive, a pattern like /path/{00000..00012}.tar or a URL like it, or "
    "@list.txt with one shard a line"
)
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 10_000_000  # shards of one pattern: more is a slip of the keyboard
SILENCE_S = 60  # of a server, until a read counts as failed


_CHECKED: set[str] = set()  # protocols


@dataclass(frozen=True)
class Shards:
    """A sharded data set to train on.

    Args:
        paths: files and URLs; names: what samples call them, the same wherever the data set lies.
        epoch_size: samples of an epoch, over all processes.
        caption_key: where a sample's `.json` keeps its caption.
        counts: samples of each shard; None where nobody has counted them.
        broken: shards that are known to be damaged, with the reason.
        notes: what was decided in the user's place, to be said.
        root: as the user named them.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    epoch_size: int
    caption_key: str = "caption"
    counts: tuple[int, ...] | None = None
    broken: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    root: str = ""


def list_shards(root: str | Path, *, key: str = "data.root") -> list[str]:
    """The shards that `root` names, in order: absolute paths and URLs.

    Args:
        root: a folder, an archive, a brace pattern, `@FILE` with one of those a line (relative to the file), or a URL.
        key: the configuration key, for messages.

    Raises:
        UserError: nothing is there, a list's line is wrong, or a shard is named twice.
    """
    text = str(root)
    if text.startswith("@"):
        return _no_duplicates(_from_list(Path(text[1:]).expanduser(), key), f"{key}={root}")
    if text.startswith("pipe:"):
        raise UserError(f"{key}={root}: commands are not run; give files or a URL. {LAYOUTS}")
    if is_remote(text):
        return _no_duplicates(_braces(text, f"{key}={root}"), f"{key}={root}")
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.glob("*.tar") if not file.name.startswith("."))
        if not found:
            below = sorted({file.parent.name for file in path.glob("*/*.tar")})
            hint = f"; there are some in {', '.join(below[:5])}: name one of these folders" if below else ""
            raise UserError(f"{key}={root}: no *.tar in this folder{hint}. {LAYOUTS}")
        return [str(file.absolute()) for file in found]
    if path.exists():
        return [str(path.absolute())]
    names = _no_duplicates(
        [str(Path(name).absolute()) for name in _braces(str(path), f"{key}={root}")], f"{key}={root}"
    )
    if not any(os.path.exists(name) for name in names):
        raise UserError(f"{key}={root}: no such file or folder ({names[0]}). {LAYOUTS}")
    return names


def is_remote(shard: str) -> bool:
    """Whether a shard is named by a URL."""
    return "://" in shard


def open_shard(shard: str) -> BinaryIO:
    """A shard's bytes, from its beginning; remote ones through fsspec.

    Raises:
        UserError: no library here opens such URLs.
        OSError: it is missing or cannot be opened; reading raises nothing else either.
    """
    if not is_remote(shard):
        return open(shard, "rb")
    system, path = _file_system(shard)
    try:
        return cast(BinaryIO, RemoteFile(system.open(path, "rb")))
    except OSError:
        raise
    except Exception as error:  # each of fsspec's back ends has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def check_opener(shard: str) -> None:
    """`UserError` if no library here opens such URLs; nothing is read."""
    if is_remote(shard) and shard.partition("://")[0] not in _CHECKED:
        _file_system(shard)
        _CHECKED.add(shard.partition("://")[0])


class RemoteFile(io.RawIOBase):
    """A file of fsspec's, read from front to back; all that goes wrong is an `OSError`."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self.file = file

    def read(self, size: int = -1, /) -> bytes:
        try:
            data: bytes = self.file.read(size)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return data

    def close(self) -> None:
        with suppress(Exception):
            self.file.close()
        super().close()


def _file_system(url: str) -> tuple[Any, str]:
    """Of fsspec, and the path in it."""
    import fsspec

    options: dict[str, Any] = {}
    if urlsplit(url).scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # fsspec's words for a missing back end and for an unknown protocol
        raise UserError(f"{url} cannot be opened: {error}") from error
    return system, str(path)


def reason_of(error: BaseException) -> str:
    """What went wrong with a shard, in a line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error)
    return str(text).partition("\n")[0] or type(error).__name__


def copy_shard(url: str, folder: Path) -> Path:
    """A local copy of a remote shard below `folder`, found again while its size and date stay the same.

    The copy is written beside its place and moved there when it is complete.

    Raises:
        UserError: it cannot be read, or there is no room for it.
    """
    system, path = _file_system(url)
    part: Path | None = None
    try:
        try:
            about = system.info(path)
        except OSError:
            raise
        except Exception as error:  # as in `open_shard`
            raise OSError(f"{type(error).__name__}: {error}") from error
        dated = [str(about.get(name)) for name in ("size", "ETag", "LastModified", "mtime", "updated")]
        digest = hashlib.sha256("\n".join([url, *dated]).encode()).hexdigest()[:16]
        place = folder / f"{digest}-{_file_name(url)}"
        if place.is_file():
            return place
        folder.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part{os.getpid()}")
        copied = 0
        with open_shard(url) as file, part.open("wb") as copy:
            while block := file.read(1 << 20):
                copied += copy.write(block)
        if isinstance(about.get("size"), int) and copied != about["size"]:
            raise OSError(f"{copied:,} of {about['size']:,} bytes arrived")
        part.replace(place)
    except OSError as error:
        raise UserError(f"{url} could not be copied to {folder}: {reason_of(error)}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return place


def short_names(shards: list[str]) -> list[str]:
    """Each shard's name without what all of them have in front, which moving a data set changes."""
    parts = [(shard.partition("?")[0] if is_remote(shard) else shard).split("/") for shard in shards]
    shared = 0
    while parts and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return ["/".join(own[shared:]) for own in parts]


def _file_name(url: str) -> str:
    """The end of a URL, as far as it is good for a file's name."""
    return re.sub(r"[^\w.-]", "_", urlsplit(url).path.rpartition("/")[2])[-80:] or "shard.tar"


def _from_list(file: Path, key: str) -> list[str]:
    try:
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}=@{file}: the list of shards cannot be read: {reason_of(error)}") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith(("@", "pipe:")):
            raise UserError(f"{file}, line {number}: {text!r} is neither a file nor a URL")
        where = f"{file}, line {number}"
        names = _braces(text if is_remote(text) else str(file.parent.absolute() / Path(text).expanduser()), where)
        found += names
    if not found:
        raise UserError(f"{file} lists no shards; one path or URL a line is expected")
    return found


def _braces(text: str, where: str) -> list[str]:
    """Every combination of a pattern's braces: `{00..12}` counts, `{a,b}` lists."""
    parts: list[list[str]] = []
    rest = text
    while (opened := rest.find("{")) >= 0 and (closed := rest.find("}", opened)) >= 0:
        inside = rest[opened + 1 : closed]
        if counted := RANGE.fullmatch(inside):
            first, last = int(counted[1]), int(counted[2])
            if not 0 <= last - first < MOST:
                raise UserError(f"{where}: {{{inside}}} is no range from a smaller to a larger number")
            width = len(counted[1]) if counted[1].startswith("0") else 0
            choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
        else:
            choices = inside.split(",") if "," in inside else [f"{{{inside}}}"]
        parts += [[rest[:opened]], choices]
        rest = rest[closed + 1 :]
    count = 1
    for choices in parts:
        count *= len(choices)
    if count > MOST:
        raise UserError(f"{where}: {count:,} shards are more than anybody has")
    return ["".join(chosen) + rest for chosen in itertools.product(*parts)]


def _no_duplicates(shards: list[str], where: str) -> list[str]:
    seen: set[str] = set()
    for shard in shards:
        if shard in seen:
            raise UserError(f"{where}: {shard} is named twice")
        seen.add(shard)
    return shards
