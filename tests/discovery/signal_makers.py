"""Signals of made-up pictures: known classes are directions, novel pictures are others."""

import numpy as np
from numpy.typing import NDArray

from clipkit.discovery.signals import Signals

WIDTH = 16


def signals(classes: NDArray[np.int64], *, known: int = 4, spread: float = 0.25, seed: int = 0) -> Signals:
    """Pictures of these classes; the first `known` are the columns of cosines and logits."""
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.random.default_rng(seed).normal(size=(len(classes), WIDTH))
    embeds = centres[classes] + spread * noise
    embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)
    cosines = (embeds @ centres[:known].T).astype(np.float32)
    return Signals(embeds, 3 * embeds, cosines, 10 * cosines)


def labels(each: int, *, known: int = 4) -> NDArray[np.int64]:
    return np.repeat(np.arange(known), each)
