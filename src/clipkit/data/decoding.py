"""Decode every picture once: finds the broken ones before training, and keeps small data sets in memory."""

import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.data.records import Records
from clipkit.errors import UserError

__all__ = ["Broken", "Decoded", "decode_all", "refuse_if_broken"]

DECODE_ERRORS = (
    OSError,  # missing, unidentified, truncated
    SyntaxError,  # PIL's word for a malformed PNG or TIFF
    ValueError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
Broken = tuple[str, str]  # a picture's name, and what is wrong with it


class Decoded:
    """The pixels of a data set: from memory where they fit, else decoded again at each use.

    Args:
        records: the whole data set, broken pictures removed.
        preprocess: PIL image -> uint8 [3, S, S].
        pixels: [N, 3, S, S] uint8 in the order of `records`, or None.
    """

    def __init__(self, records: Records, preprocess: Callable[[Image.Image], Tensor], pixels: Tensor | None) -> None:
        self.records, self.preprocess, self.pixels = records, preprocess, pixels
        self._row_of = {int(image_id): row for row, image_id in enumerate(records.image_ids)}

    def __call__(self, image_ids: NDArray[np.int64]) -> Tensor:
        """[B] image ids -> uint8 [B, 3, S, S]."""
        rows = [self._row_of[int(image_id)] for image_id in image_ids]
        if self.pixels is not None:
            return self.pixels[rows]
        return torch.stack([self.preprocess(self.records.reader(self.records.image_name(row))) for row in rows])


def decode_all(
    records: Records, preprocess: Callable[[Image.Image], Tensor], *, memory_limit: float, threads: int = 2
) -> tuple[Decoded, list[Broken]]:
    """Open every picture once.

    Args:
        records: of all splits.
        preprocess: PIL image -> uint8 [3, S, S].
        memory_limit: megabytes of pixels to keep; a larger set is only checked.
        threads: pictures decoded at a time.

    Returns:
        The pixels of the readable pictures, and the broken ones with their reasons.
    """
    broken: list[Broken] = []
    good: list[int] = []
    pixels: Tensor | None = None
    image_ids = records.image_ids
    if len(records):
        probe = preprocess(Image.new("RGB", (8, 8)))
        if probe.numel() * len(records) <= memory_limit * 1e6:
            pixels = torch.empty((len(records), *probe.shape), dtype=torch.uint8)

    def attempt(row: int) -> Tensor | str:
        try:
            return preprocess(records.reader(records.image_name(row)))
        except DECODE_ERRORS as error:
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(threads) as pool:
        for row, outcome in enumerate(pool.map(attempt, range(len(records)), chunksize=16)):
            if isinstance(outcome, str):
                broken.append((records.image_name(row), outcome))
                continue
            if pixels is not None:
                pixels[row] = outcome
            good.append(row)
    if broken:
        kept = set(good)
        records = records.without([int(image_ids[row]) for row in range(len(image_ids)) if row not in kept])
        pixels = None if pixels is None else pixels[good]
    return Decoded(records, preprocess, pixels), broken


def refuse_if_broken(broken: list[Broken], total: int, max_broken: float, listing: object) -> None:
    """Stop when more than the allowed share of pictures is broken.

    Raises:
        UserError: with the first names and where the whole list is.
    """
    if len(broken) > max_broken * total:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in broken[:10])
        more = f"\n  … and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise UserError(
            f"{len(broken)} of {total} pictures are broken or missing, more than data.max_broken={max_broken} "
            f"allows:\n{shown}{more}\nThe whole list: {listing}"
        )
