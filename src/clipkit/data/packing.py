"""The packed store: pictures decoded once, made smaller, and kept in one memory-mapped file.

Run: python -m clipkit.pack data=coco data.root=/path/to/coco size=256

Each picture is found by a hash of its name and stamp (size and time of its file): one that has changed since is not
found, and is then read from its own file. A store is written beside its place and moved there when complete.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.data.decoding import DECODE_ERRORS, Broken, in_order, reason_of
from clipkit.data.images import EncodedReader, fingerprint
from clipkit.data.opening import Choose, decode_crop, resized_crop
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.pictures import decode

__all__ = ["Format", "PackedStore", "find_store", "pack"]

Format = Literal["raw", "jpeg"]
VERSION = 1


class PackedStore:
    """Pictures of one store, by the hashes that `Records.picture_hashes` gives.

    Args:
        place: the store's folder.

    Raises:
        UserError: it is no store, or its files do not fit together.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = Path(place)
        try:
            about = json.loads((self.place / "pack.json").read_text())
            self.format, self.size = str(about["format"]), int(about["size"])
            self.hashes: NDArray[np.uint64] = np.load(self.place / "hashes.npy")  # sorted
            self.spans: NDArray[np.int64] = np.load(self.place / "spans.npy")  # [N, 2]: first byte, and after the last
            self.shapes: NDArray[np.int32] = np.load(self.place / "shapes.npy")  # [N, 2]: height, width
            self.length = (self.place / "pixels.bin").stat().st_size
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.place} is no packed store that can be read ({error}): pack again") from error
        if about.get("version") != VERSION or len(self.spans) != len(self.hashes) or self.length != about["bytes"]:
            raise UserError(f"{self.place} is damaged or of another version of clipkit: remove it and pack again")

    def __len__(self) -> int:
        return len(self.hashes)

    def rows(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place of each picture in the store, −1 for those it does not hold."""
        place = np.searchsorted(self.hashes, hashes).clip(0, max(0, len(self.hashes) - 1))
        found = self.hashes[place] == hashes if len(self.hashes) else np.zeros(len(hashes), bool)
        return np.where(found, place, -1).astype(np.int64)

    def open_crop(self, row: int, choose: Choose, size: int) -> Tensor:
        """A part of a packed picture -> uint8 [3, size, size]; see `clipkit.data.opening.open_crop`."""
        part = self._bytes(row)
        if self.format == "jpeg":
            return decode_crop(part.numpy().tobytes(), choose, size)
        height, width = self.shapes[row].tolist()
        return resized_crop(part.view(height, width, 3).permute(2, 0, 1), choose, size)

    def image(self, row: int) -> Image.Image:
        """A packed picture."""
        part = self._bytes(row).numpy()
        if self.format == "jpeg":
            return Image.open(io.BytesIO(part.tobytes())).convert("RGB")
        height, width = self.shapes[row].tolist()
        return Image.fromarray(part.reshape(height, width, 3))

    @cached_property
    def bytes(self) -> Tensor:
        """uint8, all pictures one after the other; memory-mapped, so that processes share it."""
        return torch.from_file(str(self.place / "pixels.bin"), size=self.length, dtype=torch.uint8)

    def _bytes(self, row: int) -> Tensor:
        first, last = self.spans[row].tolist()
        return self.bytes[first:last]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "bytes"}


def find_store(folder: str | Path, hashes: NDArray[np.uint64], *, size: int) -> tuple[PackedStore | None, list[str]]:
    """The store below `folder` that holds most of these pictures, at least `size` pixels a side.

    Args:
        folder: holds any number of stores.
        hashes: of the pictures that are wanted.
        size: of the square that a model eats: a smaller store would have to be made larger again.

    Returns:
        The store, of equally good ones that with the smaller pictures, or None; and what to say about others.
    """
    found: list[tuple[int, int, PackedStore]] = []
    notes = []
    for place in sorted(Path(folder).expanduser().glob("*/pack.json")):
        try:
            store = PackedStore(place.parent)
        except UserError as error:
            notes.append(f"not used: {error}")
            continue
        count = int((store.rows(hashes) >= 0).sum())
        if count and store.size < size:
            notes.append(f"the packed store {place.parent} is not used: {store.size} pixels are less than {size}")
        elif count:
            found.append((-count, store.size, store))
    best = min(found, key=lambda one: one[:2], default=None)
    return (None if best is None else best[2]), notes


def pack(
    records: Records,
    folder: str | Path,
    *,
    size: int = 256,
    format: Format = "raw",
    quality: int = 95,
    threads: int = 2,
    overwrite: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[PackedStore, list[Broken]]:
    """Decode every picture once and store it with `size` pixels on its shorter side; smaller ones stay as they are.

    Args:
        records: of all splits.
        folder: the store becomes a folder below it, named by the pictures, size and format.
        size: in pixels.
        format: "raw" bytes, the fastest to read; or "jpeg", about a tenth of the space.
        quality: of JPEG.
        threads: pictures decoded at a time.
        overwrite: pack again what is there.
        on_progress: called with (what, done, total).

    Returns:
        The store, and the pictures that could not be read with their reasons; they are left out.

    Raises:
        UserError: an argument is out of range, the disk is full, or the folder cannot be written.
    """
    if format not in get_args(Format):
        raise UserError(f"format={format}: choose from {', '.join(get_args(Format))}")
    if not 1 <= size <= 16_384 or not 1 <= quality <= 100:
        raise UserError(f"size={size}, quality={quality}: pixels from 1 to 16,384 and a quality from 1 to 100 expected")
    hashes = records.picture_hashes
    settings = {"version": VERSION, "format": format, "size": size, "quality": quality if format == "jpeg" else None}
    key = fingerprint([json.dumps(settings, sort_keys=True), hashes.tobytes().hex()])[:16]
    place = Path(folder).expanduser() / f"{records.name}-{size}-{format}-{key}"
    if place.exists() and not overwrite:
        return PackedStore(place), []
    part = place.with_name(f".{place.name}.part{os.getpid()}")
    try:
        _remove_abandoned(place.parent)
        part.mkdir(parents=True)
        broken = _write(part, records, hashes, settings, threads, on_progress)
        if place.exists() and overwrite:
            shutil.rmtree(place)
        if not place.exists():
            part.rename(place)
    except OSError as error:
        if not place.exists():  # else another process was first
            raise UserError(
                f"pictures could not be packed into {place}: {error}. Free some space, choose another place with "
                "cache_dir=DIR, or pack smaller: format=jpeg"
            ) from error
        broken = []
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return PackedStore(place), broken


def _write(
    part: Path,
    records: Records,
    hashes: NDArray[np.uint64],
    settings: dict[str, Any],
    threads: int,
    on_progress: Callable[[str, int, int], None] | None,
) -> list[Broken]:
    broken: list[Broken] = []
    kept: list[int] = []
    spans: list[tuple[int, int]] = []
    shapes: list[tuple[int, int]] = []
    length = 0

    def encode(row: int) -> tuple[bytes, int, int] | str:
        return _encoded(records, row, **settings)

    with (part / "pixels.bin").open("wb") as file:
        for row, outcome in enumerate(in_order(encode, range(len(records)), threads=threads)):
            if isinstance(outcome, str):
                broken.append((records.image_name(row), outcome))
            else:
                data, height, width = outcome
                file.write(data)
                kept.append(row)
                spans.append((length, length + len(data)))
                shapes.append((height, width))
                length += len(data)
            if on_progress is not None:
                on_progress("packing pictures", row + 1, len(records))
        file.flush()
        os.fsync(file.fileno())
    if not kept:
        raise UserError(f"{records.name}: none of {len(records)} pictures can be read, the first: {broken[:1]}")
    unique, first = np.unique(hashes[kept], return_index=True)  # sorted, and a picture listed twice stands once
    np.save(part / "hashes.npy", unique)
    np.save(part / "spans.npy", np.array(spans, np.int64)[first])
    np.save(part / "shapes.npy", np.array(shapes, np.int32)[first])
    about = {**settings, "data": records.name, "pictures": len(unique), "bytes": length}
    (part / "pack.json").write_text(json.dumps(about, indent=1) + "\n")
    return broken


def _encoded(
    records: Records, row: int, *, version: int, format: Format, size: int, quality: int | None
) -> tuple[bytes, int, int] | str:
    """A picture's bytes as stored, height and width; or why it cannot be read."""
    name = records.image_name(row)
    try:
        if isinstance(records.reader, EncodedReader):
            file = Image.open(io.BytesIO(records.reader.read(name)))
            if file.format == "JPEG" and min(file.size) >= 4 * size:
                share = min(file.size) // (2 * size)  # twice what is needed: resizing averages the rest
                file.draft(file.mode, (file.width // share, file.height // share))
            image = decode(file)
        else:
            image = records.reader(name)
    except DECODE_ERRORS as error:
        return reason_of(error)
    shorter = min(image.size)
    if shorter > size:
        wide, tall = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((wide, tall), Image.Resampling.BICUBIC)
    if format == "raw":
        return image.tobytes(), image.height, image.width
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue(), image.height, image.width


def _remove_abandoned(folder: Path) -> None:
    """What packing that was killed left beside the stores."""
    for part in folder.glob(".*.part*"):
        process = part.name.rpartition(".part")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(part, ignore_errors=True)
