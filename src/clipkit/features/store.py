"""Arrays on disk, found again by everything that determines their content.

Default place: ~/.cache/clipkit/features (configuration key `cache_dir`, environment variable CLIPKIT_CACHE).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from clipkit.errors import UserError

__all__ = ["FeatureStore", "tensors_fingerprint"]


Shape = tuple[int, ...]
Array = NDArray[np.float32]


class FeatureStore:
    """Memory-mapped arrays keyed by content.

    An entry is written beside its place and moved there when complete: an interrupted or failed computation leaves
    nothing that could be taken for a result. Of two processes that need the same one, the first computes it and the
    other waits; on a disk without locks both compute, and either wins. What was damaged since (a file cut short,
    another key) is computed anew.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def get(self, key: dict[str, Any], shape: Shape, encode: Callable[[], Iterable[Array]]) -> Array:
        """The array of `key`, computed by `encode` if it is not there yet.

        Args:
            key: plain values that determine the content: weights, preprocessing, records, policy, seed.
            shape: of the array.
            encode: yields consecutive blocks along the flattened leading axes; their widths are `shape[-1]`.

        Returns:
            A read-only memory-mapped float32 array.

        Raises:
            UserError: the disk has no room, or the folder cannot be written.
        """

        def blocks() -> Iterable[Mapping[str, Array]]:
            return ({"array": block} for block in encode())

        return self.get_all(key, shape[:-1], {"array": shape[-1:]}, blocks)["array"]

    def get_all(
        self,
        key: dict[str, Any],
        lead: Shape,
        shapes: Mapping[str, Shape],
        encode: Callable[[], Iterable[Mapping[str, Array]]],
    ) -> dict[str, Array]:
        """Several arrays of one entry, as `get` gives one.

        Args:
            key: as for `get`.
            lead: the leading axes that all of them have, [views, pictures] for instance.
            shapes: by name, what follows the leading axes.
            encode: yields consecutive blocks [n, …] along the flattened leading axes, by name.

        Returns:
            By name, read-only memory-mapped float32 arrays [*lead, *shape].
        """
        whole = {name: (*lead, *shape) for name, shape in shapes.items()}
        text = json.dumps({"version": 1, "shapes": whole, **key}, sort_keys=True)
        place = self.root / hashlib.sha256(text.encode()).hexdigest()[:32]
        found = _read(place, text, whole)
        if found is None:
            with _alone_at(place):
                found = _read(place, text, whole)  # another process may have been at it
                if found is None:
                    _remove_damaged(place)
                    self._compute(place, text, lead, shapes, encode)
                    found = _read(place, text, whole)
        if found is None:
            raise UserError(f"the features in {place} cannot be read back: is another process removing them?")
        return found

    def _compute(
        self,
        place: Path,
        key: str,
        lead: Shape,
        shapes: Mapping[str, Shape],
        encode: Callable[[], Iterable[Mapping[str, Array]]],
    ) -> None:
        part = place.with_name(f"{place.name}.part{os.getpid()}")
        rows = int(np.prod(lead))
        needed = rows * sum(int(np.prod(shape)) for shape in shapes.values()) * 4
        try:
            part.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(part).free
            if free < needed * 1.02:
                raise OSError(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
            arrays = {name: _empty(part / f"{name}.npy", (*lead, *shape)) for name, shape in shapes.items()}
            flat = {name: array.reshape(rows, *shapes[name]) for name, array in arrays.items()}
            row = 0
            for blocks in encode():
                for name, block in blocks.items():
                    flat[name][row : row + len(block)] = block
                row += len(next(iter(blocks.values())))
            assert row == rows, f"encode gave {row} rows of {rows}"
            for array in arrays.values():
                array.flush()
            (part / "key.json").write_text(key + "\n")
            if not place.exists():
                part.rename(place)
        except OSError as error:
            if place.exists():
                return  # another process was first
            raise UserError(
                f"the features of the frozen towers could not be stored in {self.root}: {error}. "
                "Free some space or choose another place with cache_dir=DIR"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _alone_at(place: Path) -> Iterator[None]:
    """Keep other processes from an entry; who dies inside lets the next one on."""
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    with suppress(OSError, NotImplementedError):  # no locks on this disk; or no writing, which computing will say
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _read(place: Path, key: str, shapes: Mapping[str, Shape]) -> dict[str, Array] | None:
    """The arrays of an entry, or None where they are missing, cut short, or of another key."""
    try:
        if (place / "key.json").read_text() != key + "\n":
            return None
        found = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in shapes}
    except (OSError, ValueError, EOFError):  # numpy says ValueError of a file that is shorter than its header
        return None
    fine = all(array.shape == shapes[name] and array.dtype == np.float32 for name, array in found.items())
    return found if fine else None


def _remove_damaged(place: Path) -> None:
    """Move a damaged entry out of the way at once, so that another process cannot meet half of it."""
    if not place.exists():
        return
    old = place.with_name(f"{place.name}.damaged{os.getpid()}")
    try:
        place.rename(old)
    except OSError:
        return  # another process was first, or the folder cannot be written: computing will say so
    shutil.rmtree(old, ignore_errors=True)


def _empty(file: Path, shape: Shape) -> "np.memmap[Any, np.dtype[np.float32]]":
    """A memory-mapped file whose disk space is claimed."""
    array = open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    with file.open("r+b") as opened:
        _reserve(opened.fileno(), file.stat().st_size)
    return array


def _reserve(descriptor: int, size: int) -> None:
    """Claim the disk space now: a memory-mapped write to a full disk would kill the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        os.posix_fallocate(descriptor, 0, size)


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
