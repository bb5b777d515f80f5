"""Bootstrapped intervals against scipy's bootstrap, and how often they hold the truth."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from clipkit.metrics import bootstrap_interval


def test_interval_equals_scipys_bootstrap_of_single_pictures() -> None:
    hits = np.random.default_rng(0).random(300) < 0.3
    low, high = bootstrap_interval(torch.from_numpy(hits), resamples=20_000)
    found = bootstrap((hits,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx(found, abs=0.004)  # one picture more or less


def test_captions_of_one_picture_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 6, 200)
    right = rng.random(200) < 0.4  # all captions of a picture hit or none does
    units = np.repeat(np.arange(200), counts)
    hits, number = torch.from_numpy(right[units]), torch.from_numpy(units + 1000)
    low, high = bootstrap_interval(hits, units=number, resamples=20_000)
    found = bootstrap(
        (right * counts, counts),
        lambda hits, n, axis: hits.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=3,
    ).confidence_interval
    assert (low, high) == pytest.approx(found, abs=0.005)
    alone = bootstrap_interval(hits, resamples=20_000)
    assert high - low > 1.4 * (alone[1] - alone[0])


def test_95_percent_intervals_hold_the_truth_about_as_often() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for trial in range(400):
        low, high = bootstrap_interval(torch.from_numpy(rng.random(200) < 0.6), seed=trial, resamples=500)
        held += low <= 0.6 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_the_seed_decides_and_certainty_has_no_width() -> None:
    hits = torch.arange(50) % 3 == 0
    assert bootstrap_interval(hits, seed=5) == bootstrap_interval(hits, seed=5)
    assert bootstrap_interval(hits, seed=0) != bootstrap_interval(hits, seed=1)
    assert bootstrap_interval(torch.ones(9, dtype=torch.bool)) == (1.0, 1.0)
    assert bootstrap_interval(torch.zeros(1)) == (0.0, 0.0)
