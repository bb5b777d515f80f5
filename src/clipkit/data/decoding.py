"""Decode a whole data set into memory, and say which pictures are broken."""

import os
import struct
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.ranks import cores_shared_by, jobs_at_once

__all__ = [
    "DECODE_ERRORS",
    "Broken",
    "Progress",
    "available_cores",
    "decode_all",
    "find_broken",
    "fits_in_memory",
    "in_order",
    "reason_of",
    "refuse_if_broken",
    "without",
]

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
Preprocess = Callable[[Image.Image], Tensor]
Progress = Callable[[str, int, int], None]
In = TypeVar("In")
Out = TypeVar("Out")


def fits_in_memory(records: Records, preprocess: Preprocess, memory_limit: float) -> bool:
    """Whether all squares of pixels together take no more than `memory_limit` megabytes."""
    return len(records) * preprocess(Image.new("RGB", (8, 8))).numel() <= memory_limit * 1e6


def decode_all(
    records: Records, preprocess: Preprocess, *, threads: int = 2, on_progress: Progress | None = None
) -> tuple[Records, Tensor, list[Broken]]:
    """Open every picture and keep its pixels.

    Args:
        records: of all splits.
        preprocess: PIL image -> uint8 [3, S, S].
        threads: pictures decoded at a time.
        on_progress: called with (what, done, total).

    Returns:
        The records of the readable pictures, their pixels [N, 3, S, S], and the broken ones with their reasons.
    """
    probe = preprocess(Image.new("RGB", (8, 8)))
    pixels = torch.empty((len(records), *probe.shape), dtype=torch.uint8)

    def attempt(row: int) -> str | None:
        try:
            pixels[row] = preprocess(records.reader(records.image_name(row)))
        except DECODE_ERRORS as error:
            return reason_of(error)
        return None

    broken = find_broken(records, attempt, "opening pictures", threads, on_progress)
    if broken:
        keep = np.setdiff1d(np.arange(len(records)), list(broken))
        pixels = pixels[torch.from_numpy(keep)]
    return without(records, broken), pixels, [(records.image_name(row), why) for row, why in broken.items()]


def refuse_if_broken(broken: Sequence[Broken], total: int, max_broken: float, listing: object) -> None:
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


def reason_of(error: Exception) -> str:
    """What is wrong with a picture, in the same words each time: PIL names the place in memory that it read."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known format"
    return str(error) or type(error).__name__


def available_cores() -> int:
    """The cores that this process may use: containers and job systems often allow fewer than the machine has.

    Processes that train together on one machine share them, and so do jobs of a multirun that run at a time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (cores_shared_by() * jobs_at_once()))


def in_order(work: Callable[[In], Out], items: Iterable[In], *, threads: int, ahead: int = 8) -> Iterator[Out]:
    """`map` by several threads, at most `ahead` results a thread before the one that is asked for."""
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[Out]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what is not begun


def find_broken(
    records: Records,
    attempt: Callable[[int], str | None],
    what: str,
    threads: int,
    on_progress: Progress | None,
) -> dict[int, str]:
    """Broken rows and their reasons.

    Args:
        records: of all splits.
        attempt: opens the picture of a row; gives the reason if that fails.
        what: is done, for `on_progress`.
        threads: pictures opened at a time.
        on_progress: called with (what, done, total).
    """
    broken: dict[int, str] = {}
    chunks = [range(start, min(start + 64, len(records))) for start in range(0, len(records), 64)]

    def attempt_all(rows: range) -> list[str | None]:
        return [attempt(row) for row in rows]

    for chunk, reasons in zip(chunks, in_order(attempt_all, chunks, threads=threads), strict=True):
        broken.update({row: why for row, why in zip(chunk, reasons, strict=True) if why is not None})
        if on_progress is not None:
            on_progress(what, chunk.stop, len(records))
    return broken


def without(records: Records, broken: dict[int, str]) -> Records:
    """The records but these rows."""
    return records.without(records.image_ids[list(broken)].tolist()) if broken else records
