"""Open every picture of a data set once, to find the broken ones; and remember what was found.

Run: python -m clipkit.describe data=…
"""

import hashlib
import io
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipkit.data.decoding import DECODE_ERRORS, Broken, Progress, find_broken, reason_of, without
from clipkit.data.images import EncodedReader, ImageReader
from clipkit.data.keeping import kept
from clipkit.data.records import Records
from clipkit.pictures import decode, orientation

__all__ = ["Checked", "check_pictures"]


@dataclass(frozen=True)
class Checked:
    """What opening every picture showed.

    Args:
        readable: the records whose pictures can be read.
        broken: the others, with reasons.
        sizes: how many pictures have which (width, height) in pixels, upright.
    """

    readable: Records
    broken: list[Broken]
    sizes: Counter[tuple[int, int]]


def check_pictures(
    records: Records, *, cache: str | Path | None = None, threads: int = 2, on_progress: Progress | None = None
) -> Checked:
    """Open every picture. What was found is kept, and found again while no picture changes.

    JPEGs are decoded at an eighth of their size: their data is read to the end, which is where damage shows.

    Args:
        records: of all splits.
        cache: a folder for what was found; None checks each time.
        threads: pictures opened at a time.
        on_progress: called with (what, done, total).
    """
    place = None
    if cache is not None:
        key = hashlib.sha256(records.picture_hashes.tobytes()).hexdigest()[:32]
        place = Path(cache).expanduser() / f"{records.name}-{key}.json"
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            known = json.loads(place.read_text())
            broken = {int(row): str(why) for row, why in known["broken"].items()}
            return _checked(records, broken, Counter({(wide, tall): n for wide, tall, n in known["sizes"]}))
    sizes: list[tuple[int, int]] = [(0, 0)] * len(records)

    def attempt(row: int) -> str | None:
        try:
            sizes[row] = _open(records.reader, records.image_name(row))
        except DECODE_ERRORS as error:
            return reason_of(error)
        return None

    broken = find_broken(records, attempt, "checking pictures", threads, on_progress)
    counted = Counter(size for row, size in enumerate(sizes) if row not in broken)
    if place is not None:
        found = {"broken": broken, "sizes": [[*size, count] for size, count in counted.items()]}
        with kept(place) as part:
            part.write_text(json.dumps(found))
    return _checked(records, broken, counted)


def _checked(records: Records, broken: dict[int, str], sizes: Counter[tuple[int, int]]) -> Checked:
    return Checked(without(records, broken), [(records.image_name(row), why) for row, why in broken.items()], sizes)


def _open(reader: ImageReader, name: str) -> tuple[int, int]:
    """Read a picture to its end; its width and height, upright."""
    if not isinstance(reader, EncodedReader):
        return reader(name).size
    image = Image.open(io.BytesIO(reader.read(name)))
    if image.format != "JPEG":
        return decode(image).size
    wide, tall = image.size
    image.draft(image.mode, (1, 1))
    image.load()
    return (tall, wide) if orientation(image) >= 5 else (wide, tall)
