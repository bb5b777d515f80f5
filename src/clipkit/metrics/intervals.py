"""How far a share of right answers can be trusted: bootstrapped intervals."""

import numpy as np
from torch import Tensor

__all__ = ["bootstrap_interval"]


def bootstrap_interval(
    hits: Tensor, *, units: Tensor | None = None, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Between which values the mean of `hits` lies when the pictures are drawn anew (percentile bootstrap, Efron 1979).

    What belongs to one unit is drawn together: the captions of one picture are not independent of each other. Units
    with equal numbers of hits and entries are the same to a mean, so it is those kinds that are drawn, each as often
    as a multinomial draw says: the same distribution as drawing units one by one, at a fraction of the work.

    Args:
        hits: [N] true or false, N at least 1.
        units: [N] integers; None: each entry is a unit.
        confidence: of the interval.
        resamples: how often the units are drawn anew.
        seed: of the draws.

    Returns:
        The lower and the upper end, both in 0–1.
    """
    values = hits.cpu().numpy().astype(np.int64)
    number = np.arange(len(values)) if units is None else np.unique(units.cpu().numpy(), return_inverse=True)[1]
    per_unit = np.stack([np.bincount(number, values), np.bincount(number)], 1).astype(np.int64)  # [U, 2] hits, entries
    kinds, often = np.unique(per_unit, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(per_unit), often / len(per_unit), size=resamples)
    totals = drawn @ kinds  # [resamples, 2]
    tail = (1 - confidence) / 2
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [tail, 1 - tail])
    return float(low), float(high)
