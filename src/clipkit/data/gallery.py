"""Pictures to look at with a model: those of a folder, a file, a glob pattern, or a list of these."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkit.data.decoding import DECODE_ERRORS, Broken, in_order, reason_of
from clipkit.data.images import FolderReader
from clipkit.data.listing import SUFFIXES, Inputs, is_unicode
from clipkit.errors import UserError

__all__ = ["Gallery", "PixelBatch", "find_pictures", "pixel_batches"]


@dataclass(frozen=True)
class Gallery:
    """Pictures by name; nothing has been opened yet.

    Args:
        names: paths that open from the current folder, each once.
        places: the folders, files and patterns that they come from, absolute.
        reader: opens a picture by its name.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    reader: FolderReader

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def common(self) -> str:
        """The folder that all of them lie in, as the names begin; "" if there is none."""
        try:
            return os.path.commonpath([os.path.dirname(name) for name in self.names])
        except ValueError:  # some are absolute, others are not
            return ""

    def short(self, name: str) -> str:
        """A name without the folder that all of them share."""
        return os.path.relpath(name, self.common) if self.common else name


@dataclass(frozen=True)
class PixelBatch:
    """Some pictures in a row, opened.

    Args:
        names: of those that can be read, B.
        pixels: uint8 [B, 3, S, S].
        broken: the others, with reasons.
    """

    names: list[str]
    pixels: Tensor
    broken: list[Broken]


def find_pictures(places: str | Path | Sequence[str | Path], *, key: str = "images") -> Gallery:
    """The pictures that a person names.

    Args:
        places: a folder (searched with all below it), a file, a pattern (`pictures/*.png`, `**` for any depth), or
            several of them. Hidden files are left out, and so is what a folder or a pattern gives that does not end
            like a picture; a picture that is named twice counts once.
        key: what `places` is called in messages.

    Raises:
        UserError: a place that is not there, or one without pictures.
    """
    listed = [places] if isinstance(places, str | Path) else list(places)
    if not listed:
        raise UserError(f"{key}=[]: no folder, file or pattern is named")
    names: dict[str, None] = {}
    for place in listed:
        names |= dict.fromkeys(_pictures_of(str(place), key))
    strange = next((name for name in names if not is_unicode(name)), None)
    if strange is not None:
        raise UserError(f"{key}: the file name {os.fsencode(strange)!r} is not UTF-8; rename it")
    absolute = tuple(os.path.abspath(os.path.expanduser(str(place))) for place in listed)
    return Gallery(tuple(names), absolute, FolderReader(""))


def pixel_batches(
    gallery: Gallery,
    preprocess: Callable[[Image.Image], Tensor],
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[PixelBatch]:
    """Open pictures as a model sees them, in order; memory holds a few batches, however many pictures there are.

    Args:
        gallery: the pictures.
        preprocess: PIL image -> uint8 [3, S, S].
        names: some of them; None: all.
        batch_size: pictures a batch.
        threads: pictures opened at a time.
    """
    wanted = gallery.names if names is None else names

    def attempt(name: str) -> Tensor | str:
        try:
            return preprocess(gallery.reader(name))
        except DECODE_ERRORS as error:
            return reason_of(error)

    opened = in_order(attempt, wanted, threads=threads)
    for start in range(0, len(wanted), batch_size):
        chunk = wanted[start : start + batch_size]
        found = list(zip(chunk, islice(opened, len(chunk)), strict=True))
        fine = {name: pixels for name, pixels in found if isinstance(pixels, Tensor)}
        pixels = torch.stack(list(fine.values())) if fine else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        yield PixelBatch(list(fine), pixels, [(name, why) for name, why in found if isinstance(why, str)])


def _pictures_of(place: str, key: str) -> list[str]:
    typed = os.path.expanduser(place)
    endings = ", ".join(sorted(SUFFIXES))
    if os.path.isdir(typed):
        found = Inputs().pictures(Path(typed), Path(typed))
        if not found:
            raise UserError(f"{key}={place}: no pictures in this folder or below it (looked for {endings})")
        return [os.path.join(typed, name) for name in found]
    if os.path.exists(typed):
        return [typed]
    if not glob.has_magic(typed):
        raise UserError(f"{key}={place}: no such file or folder")
    matched = sorted(glob.glob(typed, recursive=True))
    found = [name for name in matched if os.path.splitext(name)[1].lower() in SUFFIXES and os.path.isfile(name)]
    if not found:
        others = f"; {len(matched):,} other files or folders match" if matched else ""
        raise UserError(f"{key}={place}: no pictures match this pattern (looked for {endings}){others}")
    return found
