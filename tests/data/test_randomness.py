"""Random numbers: of (seed, epoch, sample, purpose) alone, and even."""

import warnings

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from clipkit.data.randomness import permutation, uniform

IDS = np.arange(5000)


def test_numbers_of_a_sample_do_not_depend_on_the_others() -> None:
    together = uniform(3, 7, IDS, 4, purpose="augment")
    shuffled = np.random.default_rng(0).permutation(IDS)
    np.testing.assert_array_equal(uniform(3, 7, shuffled, 4, purpose="augment"), together[shuffled])
    in_batches = [uniform(3, 7, part, 4, purpose="augment") for part in np.array_split(IDS, 37)]
    np.testing.assert_array_equal(np.concatenate(in_batches), together)
    np.testing.assert_array_equal(uniform(3, 7, IDS, 2, purpose="augment"), together[:, :2])


@pytest.mark.parametrize(
    "other",
    [
        uniform(4, 7, IDS, 1, purpose="augment"),
        uniform(3, 8, IDS, 1, purpose="augment"),
        uniform(7, 3, IDS, 1, purpose="augment"),
        uniform(3, 7, IDS, 1, purpose="caption"),
        uniform(3, 7, IDS + 5000, 1, purpose="augment"),
        uniform(3, 7, IDS, 2, purpose="augment")[:, 1:],
    ],
    ids=["seed", "epoch", "seed and epoch exchanged", "purpose", "ids", "second draw"],
)
def test_another_seed_epoch_purpose_id_or_draw_gives_unrelated_numbers(other: np.ndarray) -> None:
    numbers = uniform(3, 7, IDS, 1, purpose="augment")
    assert not np.isin(other, numbers).any()
    assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.06  # four standard errors


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63])
@pytest.mark.parametrize("epoch", [0, 1, 100])
def test_numbers_are_even_over_the_unit_interval(seed: int, epoch: int) -> None:
    numbers = uniform(seed, epoch, IDS, 2, purpose="caption")
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert kstest(column, "uniform").pvalue > 1e-4
    cells = np.histogram2d(*numbers.T, bins=10, range=[[0, 1], [0, 1]])[0]
    assert chisquare(cells.flatten()).pvalue > 1e-4


def test_one_sample_over_many_epochs_is_even_too() -> None:
    numbers = np.concatenate([uniform(0, epoch, np.array([42]), 1, purpose="view")[0] for epoch in range(2000)])
    assert kstest(numbers, "uniform").pvalue > 1e-4


def test_no_seed_or_epoch_makes_numpy_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (-1, 0, 2**64 - 1):
            for epoch in range(50):
                uniform(seed, epoch, np.array([0, 1]), 3, purpose="order")


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count: int) -> None:
    assert sorted(permutation(1, 2, count, purpose="order").tolist()) == list(range(count))


def test_permutations_differ_by_seed_and_epoch() -> None:
    orders = {tuple(permutation(seed, epoch, 50, purpose="order")) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_of_a_permutation_is_equally_likely() -> None:
    first = [int(permutation(0, epoch, 6, purpose="order")[0]) for epoch in range(1200)]
    assert chisquare(np.bincount(first, minlength=6)).pvalue > 1e-4
