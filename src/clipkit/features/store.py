"""Arrays on disk, found again by everything that determines their content.

Default place: ~/.cache/clipkit/features (configuration key `cache_dir`, environment variable CLIPKIT_CACHE).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from clipkit.errors import UserError

__all__ = ["FeatureStore", "tensors_fingerprint"]


class FeatureStore:
    """Memory-mapped arrays keyed by content.

    An entry is written beside its place and moved there when complete: an interrupted or failed computation leaves
    nothing that could be taken for a result, and of two processes that compute the same one, either wins.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def get(
        self,
        key: dict[str, Any],
        shape: tuple[int, ...],
        encode: Callable[[], Iterable[NDArray[np.float32]]],
    ) -> NDArray[np.float32]:
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
        text = json.dumps({"version": 1, "shape": shape, **key}, sort_keys=True)
        place = self.root / hashlib.sha256(text.encode()).hexdigest()[:32]
        if not (place / "array.npy").is_file():
            self._compute(place, text, shape, encode)
        array: NDArray[np.float32] = np.load(place / "array.npy", mmap_mode="r")
        return array

    def _compute(
        self, place: Path, key: str, shape: tuple[int, ...], encode: Callable[[], Iterable[NDArray[np.float32]]]
    ) -> None:
        part = place.with_name(f"{place.name}.part{os.getpid()}")
        needed = int(np.prod(shape)) * 4
        try:
            part.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(part).free
            if free < needed * 1.02:
                raise OSError(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
            array = open_memmap(part / "array.npy", mode="w+", dtype=np.float32, shape=shape)
            with (part / "array.npy").open("r+b") as file:
                _reserve(file.fileno(), (part / "array.npy").stat().st_size)
            flat, row = array.reshape(-1, shape[-1]), 0
            for block in encode():
                flat[row : row + len(block)] = block
                row += len(block)
            assert row == len(flat), f"encode gave {row} rows of {len(flat)}"
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
