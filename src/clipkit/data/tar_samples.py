"""Samples of a tar archive in WebDataset's form: members side by side whose names differ only after the first dot.

    000000012.jpg  000000012.txt  000000012.json  000000013.jpg …

Headers are read here and not by `tarfile`, which takes damage for the end of the archive. A member's name is never a
path, and nothing but pictures, `.txt` and `.json` is ever read.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from clipkit.pictures import decode

__all__ = [
    "PICTURES",
    "DamagedTar",
    "Member",
    "Sample",
    "Tar",
    "captions_of",
    "count_samples",
    "decode_picture",
    "picture_of",
    "read_samples",
    "stable_hash",
]

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
WANTED = {*PICTURES, *TEXTS}
BLOCK = 512
LARGEST = 256 << 20  # bytes of a member that are read: no picture is larger
REGULAR, LONG_NAME, PAX = b"0\x007", b"L", b"x"  # types of members; others (folders, links, devices) are passed over
ADJACENT = "the files of one sample must stand side by side (tar --sort=name)"


class DamagedTar(OSError):
    """The archive is cut off, or something in it is no tar header."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One sample: its shard, its key, its number in the shard, and by suffix its files and their bytes."""

    shard: str
    key: str
    number: int
    members: dict[str, Member]
    parts: dict[str, bytes]

    @property
    def name(self) -> str:
        return f"{self.shard}#{self.key}"

    @property
    def image_id(self) -> int:
        """The same wherever the data set lies."""
        return stable_hash(self.name)


class Tar:
    """An uncompressed archive, read from front to back; what nobody wants is passed over without being kept.

    Args:
        file: at its beginning.
        seeks: pass over bytes by seeking; without it they are read and forgotten, as a download must.
    """

    def __init__(self, file: BinaryIO, *, seeks: bool) -> None:
        self.file = file
        self._at = 0
        self._length = file.seek(0, 2) if seeks else None
        if seeks:
            file.seek(0)

    def members(self) -> Iterator[Member]:
        """The regular files, in order.

        Raises:
            DamagedTar: with the byte where it is damaged. All members yielded before are complete, the last one aside.
        """
        name, size = "", -1  # of the next member, if a header before it says so
        while header := self._header():
            kind, length, own = header
            start, following = self._at, self._at + -(-length // BLOCK) * BLOCK
            if kind in (LONG_NAME, PAX):
                if length > 1 << 20:
                    raise DamagedTar(f"a name of {length:,} bytes before byte {start:,}")
                text = self._read(length)
                if kind == PAX:
                    fields = _pax(text)
                    name = fields.get("path", name)
                    size = int(fields["size"]) if fields.get("size", "").isdigit() else size
                else:
                    name = text.rstrip(b"\0").decode("utf-8", "replace")
            else:
                if size >= 0:
                    following += -(-size // BLOCK) * BLOCK - -(-length // BLOCK) * BLOCK
                    length = size
                if kind in REGULAR and not own.endswith("/"):
                    yield Member(name or own, start, length)
                name, size = "", -1
            self._go(following)

    def content(self, member: Member) -> bytes:
        """The bytes of the member that was yielded last."""
        self._go(member.offset)
        return self._read(member.size)

    def _header(self) -> tuple[bytes, int, str] | None:
        """Type, size and name of the next member; None at the end."""
        begun = self._at
        block = self._up_to(BLOCK)
        if not block and begun > 0:
            return None  # some writers leave out the blocks of zeros that mark the end
        if len(block) < BLOCK:
            raise DamagedTar(f"the archive ends after {self._at:,} bytes, inside a member")
        if not any(block):
            return None
        try:
            told, size = int(block[148:156].strip(b" \0"), 8), _number(block[124:136])
        except ValueError:
            told, size = -1, -1
        if size < 0 or told != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            what = "no tar archive (a compressed one must be unpacked)" if begun == 0 else "no tar header"
            raise DamagedTar(f"{what} at byte {begun:,}")
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].partition(b"\0")[0] + b"/" + name
        return block[156:157], size, name.decode("utf-8", "replace")

    def _up_to(self, count: int) -> bytes:
        """So many bytes, fewer only at the end: one read of a download may give less than it was asked for."""
        data = self.file.read(count)
        while 0 < len(data) < count and (more := self.file.read(count - len(data))):
            data += more
        self._at += len(data)
        return data

    def _read(self, count: int) -> bytes:
        data = self._up_to(count)
        if len(data) < count:
            raise DamagedTar(f"the archive ends after {self._at:,} bytes, inside a member")
        return data

    def _go(self, offset: int) -> None:
        if self._length is not None and offset != self._at:
            if offset > self._length:
                raise DamagedTar(f"the archive ends after {self._length:,} bytes, inside a member")
            self._at = self.file.seek(offset)
        while self._at < offset:
            self._read(min(offset - self._at, 1 << 20))


def read_samples(
    tar: Tar,
    shard: str,
    *,
    wanted: Callable[[int], bool] = lambda number: True,
    stop: int | None = None,
    pictures: bool = True,
) -> Iterator[Sample]:
    """The samples of one archive, in order, as soon as each is complete.

    Members without a suffix, hidden ones and those named like `__this__` are no part of any sample.

    Args:
        tar: at its beginning.
        shard: what samples call it.
        wanted: by a sample's number, whether its files are read; those of others are passed over.
        stop: the first number that is no longer looked for.
        pictures: read pictures too; without it they are only found.

    Raises:
        DamagedTar: after all samples that stand before the damage.
        OSError and others: what reading from its file raises.
    """
    number, key = -1, ""
    current: Sample | None = None
    for member in tar.members():
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem or not suffix or (stem.startswith("__") and stem.endswith("__")):
            continue
        if (name := folder + slash + stem) != key:
            if current is not None:
                yield current
            number, key = number + 1, name
            if stop is not None and number >= stop:
                return
            current = Sample(shard, key, number, {}, {}) if wanted(number) else None
        suffix = suffix.lower()
        if current is not None and suffix in WANTED and suffix not in current.members:
            current.members[suffix] = member
            if suffix in TEXTS or pictures:
                current.parts[suffix] = tar.content(member) if member.size <= LARGEST else b""
    if current is not None:
        yield current


def count_samples(tar: Tar) -> tuple[int, DamagedTar | None]:
    """How many samples `read_samples` gives of this archive, and the damage that it ends with, if it does."""
    last = -1

    def note(number: int) -> bool:
        nonlocal last
        last = number
        return False

    try:
        for _ in read_samples(tar, "", wanted=note):
            pass
    except DamagedTar as damage:
        return max(last, 0), damage  # the last one begun is not complete
    return last + 1, None


def picture_of(parts: dict[str, bytes]) -> bytes:
    """The encoded picture of a sample; `ValueError` if it has none."""
    for suffix in PICTURES:
        if suffix in parts:
            return parts[suffix]
    raise ValueError(f"no picture ({', '.join(PICTURES)}) with this key; {ADJACENT}")


def decode_picture(data: bytes) -> Image.Image:
    """Encoded bytes -> RGB; `OSError` and PIL's other errors, which here do not name an object in memory."""
    try:
        return decode(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError:
        raise OSError(f"its {len(data):,} bytes are no picture of a known kind") from None


def captions_of(parts: dict[str, bytes], key: str) -> tuple[str, ...]:
    """A sample's captions: `key` of its `.json`, a text or a list of texts; where that has none, its `.txt`.

    Raises:
        ValueError: there is no caption, or the text is damaged.
    """
    if "json" in parts:
        try:
            about = json.loads(parts["json"].decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"its .json is not UTF-8 (byte {error.start})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .json is damaged: {error}") from None
        if not isinstance(about, dict):
            raise ValueError("its .json is no object")
        said = about.get(key)
        texts = said if isinstance(said, list) else [said]
        captions = tuple(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip())
        if captions:
            return captions
    if "txt" in parts:
        try:
            caption = " ".join(parts["txt"].decode("utf-8-sig").split())
        except UnicodeDecodeError as error:
            raise ValueError(f"its .txt is not UTF-8 (byte {error.start})") from None
        if caption:
            return (caption,)
        raise ValueError("its .txt is empty")
    if "json" in parts:
        raise ValueError(f"its .json has no caption under {key!r} (data.caption_key)")
    raise ValueError(f"no caption (.txt or .json) with this key; {ADJACENT}")


def stable_hash(text: str) -> int:
    """63 bits that stand for a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little") >> 1


def _number(field: bytes) -> int:
    """A header's number: octal digits, or a binary number after the byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _pax(text: bytes) -> dict[str, str]:
    """The fields of an extended header: `LENGTH KEY=VALUE` and a newline, each."""
    fields = {}
    while text:
        digits = text.partition(b" ")[0]
        if not digits.isdigit() or int(digits) < len(digits) + 2:
            break
        key, _, value = text[len(digits) + 1 : int(digits) - 1].partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        text = text[int(digits) :]
    return fields
