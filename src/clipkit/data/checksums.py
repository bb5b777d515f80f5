"""Whether a file is the one that was published: its length and its checksum."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from clipkit.data.storing import Progress, megabytes
from clipkit.errors import UserError

__all__ = ["Checksum", "verify"]


@dataclass(frozen=True)
class Checksum:
    """A published checksum: `kind` is a name of hashlib ("sha256", "sha1", "md5"), `value` hexadecimal digits."""

    kind: str
    value: str


def verify(
    file: Path, checksum: Checksum | None, size: int | None = None, *, url: str = "", progress: Progress | None = None
) -> None:
    """Raise a `UserError` unless a file has this checksum and length, as far as they are given."""
    have = file.stat().st_size
    what = f"what {url} sent" if url else f"{file} is there already, but it"
    end = "It was removed: run the same command again" if url else "Move it away, and run the same command again"
    if size is not None and have != size:
        raise UserError(f"{what} has {have:,} bytes, and {size:,} were published. {end}")
    if checksum is None:
        return
    digest, done = hashlib.new(checksum.kind, usedforsecurity=False), 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"checking {file.name.removesuffix('.part')}, MB", megabytes(done), megabytes(have))
    if digest.hexdigest() != checksum.value.lower():
        raise UserError(
            f"{what} has the {checksum.kind} {digest.hexdigest()}, and {checksum.value} was published: it is damaged, "
            f"or another version. {end}"
        )
