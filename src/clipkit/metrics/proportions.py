"""Shares of groups: how sure they are, and whether groups differ by more than chance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2_contingency, fisher_exact

__all__ = ["holm", "independence", "wilson_interval"]

ENOUGH = 5  # expected in every cell: then the chi-square distribution can be trusted (Cochran 1954)
DRAWS = 20_000


def wilson_interval(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share by Wilson (1927): within 0–1, and of use for few pictures too.

    Args:
        count: hits.
        total: of so many, at least 1.
        confidence: how often such intervals hold the true share.
    """
    interval = binomtest(int(count), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def independence(
    hits: Sequence[int] | NDArray[np.int64], totals: Sequence[int] | NDArray[np.int64]
) -> tuple[str, float]:
    """How likely shares at least as different would be if all groups had the same one.

    Args:
        hits: [G] of each group.
        totals: [G], at least 1 each.

    Returns:
        The test and its p value: "chi-square" (without Yates' correction); where it expects fewer than 5 in a cell,
        "Fisher" for two groups, and for more "drawn", the chi-square statistic among 20,000 tables with the same
        margins, always the same ones. "none" and 1 where all or nothing was hit.
    """
    table = np.stack([np.asarray(hits), np.asarray(totals) - np.asarray(hits)], axis=1)  # [G, 2]
    if (table.sum(0) == 0).any():
        return "none", 1.0
    found = chi2_contingency(table, correction=False)
    if found.expected_freq.min() >= ENOUGH:
        return "chi-square", float(found.pvalue)
    if len(table) == 2:
        return "Fisher", float(fisher_exact(table)[1])
    sizes, expected = table.sum(1), found.expected_freq
    drawn = np.random.default_rng(0).multivariate_hypergeometric(sizes, table[:, 0].sum(), size=DRAWS)  # [DRAWS, G]
    statistics = ((drawn - expected[:, 0]) ** 2 * (1 / expected).sum(1)).sum(1)
    as_far = int((statistics >= found.statistic * (1 - 1e-9)).sum())
    return "drawn", (1 + as_far) / (1 + DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): below 0.05 at any of them is rarer than 1 in 20 by chance."""
    order = np.argsort(p_values, kind="stable")
    left = len(p_values) - np.arange(len(p_values))
    rising = np.maximum.accumulate(np.asarray(p_values, float)[order] * left)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(rising, 1)
    return [float(value) for value in corrected]
