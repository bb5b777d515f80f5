"""Random numbers that depend on (seed, epoch, sample) and on nothing else.

Worker processes, batch order and interruptions do not change them, which is what makes a resumed run exact.
"""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

__all__ = ["permutation", "uniform"]


def uniform(seed: int, epoch: int, ids: NDArray[np.int64], draws: int, *, purpose: str) -> NDArray[np.float64]:
    """[len(ids), draws] numbers in [0, 1), one row a sample.

    Args:
        seed, epoch: of the run.
        ids: the samples' ids.
        draws: numbers a sample.
        purpose: what they are for ("caption", "augment"); different purposes give independent numbers.
    """
    text = purpose.encode()
    word = int.from_bytes(text.ljust(8, b"\0") if len(text) <= 8 else sha256(text).digest()[:8], "little")
    state = _mix(_mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) ^ np.uint64(word))
    state = _mix(state + np.uint64(epoch))
    rows = _mix(state ^ _mix(ids.astype(np.uint64)))  # [B]
    with np.errstate(over="ignore"):
        cells = _mix(rows[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    numbers: NDArray[np.float64] = (cells >> np.uint64(11)).astype(np.float64) / 2**53
    return numbers


def permutation(seed: int, epoch: int, count: int, *, purpose: str) -> NDArray[np.int64]:
    """A shuffled 0 … count − 1."""
    return np.argsort(uniform(seed, epoch, np.arange(count), 1, purpose=purpose)[:, 0], kind="stable")


def _mix(x: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
        return mixed
