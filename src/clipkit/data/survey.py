"""Open every picture of a data set once, to say which are broken and how large the others are.

Run: python -m clipkit.describe data=…
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

import torch
from PIL import Image
from torch import Tensor

from clipkit.data.decoding import Broken, decode_all
from clipkit.data.images import ImageReader
from clipkit.data.records import Records

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """What opening every picture showed.

    Args:
        readable: the records whose pictures can be read.
        broken: the others, with reasons.
        sizes: how many pictures have which (width, height) in pixels, upright.
    """

    readable: Records
    broken: list[Broken]
    sizes: Counter[tuple[int, int]]


def survey(records: Records, *, threads: int, on_progress: Callable[[str, int, int], None]) -> Survey:
    """Open every picture once.

    Args:
        records: of all splits.
        threads: pictures opened at a time.
        on_progress: called with (what, done, total).
    """
    measuring = _Measuring(records.reader, lambda done: on_progress("opening pictures", done, len(records)))
    decoded, broken = decode_all(replace(records, reader=measuring), _nothing, memory_limit=0, threads=threads)
    return Survey(replace(decoded.records, reader=records.reader), broken, measuring.sizes)


class _Measuring:
    """A reader that notes the sizes of the pictures it gives."""

    def __init__(self, reader: ImageReader, on_picture: Callable[[int], None]) -> None:
        self.reader, self.on_picture = reader, on_picture
        self.sizes: Counter[tuple[int, int]] = Counter()
        self._asked = 0
        self._lock = Lock()

    def __call__(self, name: str) -> Image.Image:
        try:
            image = self.reader(name)
        finally:
            with self._lock:
                self._asked += 1
                self.on_picture(self._asked)
        with self._lock:
            self.sizes[image.size] += 1
        return image

    def stamp(self, name: str) -> str:
        return self.reader.stamp(name)


def _nothing(image: Image.Image) -> Tensor:
    """In place of a model's pixels: only whether a picture opens is asked."""
    return torch.zeros((3, 1, 1), dtype=torch.uint8)
