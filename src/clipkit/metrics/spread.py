"""A mean over few runs, and how far it can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = ["Spread", "spread"]


class Spread(NamedTuple):
    """`std`, `low` and `high` are NaN for a single value."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float], *, confidence: float = 0.95) -> Spread:
    """Mean, standard deviation (n − 1 below the root), and the mean's interval by Student's t.

    Args:
        values: one each of n independent runs.
        confidence: of the interval, which assumes that runs vary about normally.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Spread(mean, math.nan, math.nan, math.nan, n)
    std = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * std / math.sqrt(n)
    return Spread(mean, std, mean - half, mean + half, n)
