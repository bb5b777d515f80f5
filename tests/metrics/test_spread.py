"""Mean, deviation and interval of few runs, against scipy's t distribution."""

import math

import numpy as np
import pytest
from scipy import stats

from clipkit.metrics.spread import spread


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_students(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(0.6, 0.02, n)
    found = spread(values.tolist(), confidence=confidence)
    low, high = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx((values.mean(), stats.tstd(values), low, high, n), abs=1e-12)


def test_one_run_has_no_spread() -> None:
    found = spread([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.std)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_runs_have_a_spread_of_zero() -> None:
    assert spread([0.25, 0.25, 0.25]) == (0.25, 0.0, 0.25, 0.25, 3)
