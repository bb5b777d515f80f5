"""Intervals and tests of shares agree with formulas written out, and with exact sums over all tables."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from scipy.stats import binomtest, hypergeom, norm

from clipkit.metrics import holm, independence, wilson_interval


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 20), (3, 7), (50, 100), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.95, 0.9])
def test_the_interval_is_wilsons(count: int, total: int, confidence: float) -> None:
    z, share = norm.ppf((1 + confidence) / 2), count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    found = wilson_interval(count, total, confidence=confidence)
    assert found == pytest.approx((middle - half, middle + half), abs=1e-12)
    theirs = binomtest(count, total).proportion_ci(confidence, method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= found[0] <= share <= found[1] <= 1


def test_for_two_large_groups_the_test_is_that_of_two_proportions() -> None:
    (a, b), (m, n) = (30, 55), (100, 120)
    pooled = (a + b) / (m + n)
    z = (a / m - b / n) / sqrt(pooled * (1 - pooled) * (1 / m + 1 / n))
    assert independence([a, b], [m, n]) == ("chi-square", pytest.approx(2 * norm.sf(abs(z))))


def test_for_two_small_groups_it_is_fishers_sum() -> None:
    hits, totals = (1, 6), (8, 9)
    chances = {k: hypergeom.pmf(k, sum(totals), sum(hits), totals[0]) for k in range(8)}
    exact = sum(p for p in chances.values() if p <= chances[hits[0]] * (1 + 1e-7))
    assert independence(hits, totals) == ("Fisher", pytest.approx(exact))


def test_for_several_small_groups_it_comes_near_the_sum_over_all_tables() -> None:
    hits, totals = (4, 0, 1), (5, 6, 4)
    expected = np.array(totals) * sum(hits) / sum(totals)

    def statistic(cells: np.ndarray) -> float:
        rest = np.array(totals) - expected
        return float(((cells - expected) ** 2 * (1 / expected + 1 / rest)).sum())

    tables = [np.array(cells) for cells in product(*(range(n + 1) for n in totals)) if sum(cells) == sum(hits)]
    chances = [np.prod([comb(n, k) for n, k in zip(totals, t, strict=True)]) / comb(15, 5) for t in tables]
    assert sum(chances) == pytest.approx(1)
    far = statistic(np.array(hits)) - 1e-9
    exact = sum(chance for chance, table in zip(chances, tables, strict=True) if statistic(table) >= far)
    test, p = independence(hits, totals)
    assert test == "drawn"
    assert p == pytest.approx(exact, abs=4 * sqrt(exact * (1 - exact) / 20_000) + 1e-4)
    assert independence(hits, totals) == (test, p)  # the same tables each time


@pytest.mark.parametrize("hits", [(0, 0, 0), (5, 6, 4)])
def test_where_all_or_nothing_was_hit_there_is_nothing_to_test(hits: tuple[int, ...]) -> None:
    assert independence(hits, (5, 6, 4)) == ("none", 1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
