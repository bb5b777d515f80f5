"""The order of training: every row once, even batches, a new order each epoch, exact resumption."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from lightning_fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import Dataset

from clipkit.data.sampling import EpochBatches, ResumableLoader

Batches = list[list[tuple[int, int]]]


class Rows(Dataset[Any]):
    """Serves what was asked for, a whole batch at a time."""

    def __getitem__(self, item: tuple[int, int]) -> Any:
        return item

    def __getitems__(self, items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return list(items)


def groups(count: int, distinct: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, distinct, count)


def loader(count: int = 50, size: int = 8, **options: Any) -> ResumableLoader:
    return ResumableLoader(Rows(), EpochBatches(np.arange(count), batch_size=size, seed=3), **options)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 7), (8, 7), (100, 32), (129, 32), (50, 1), (33, 64)])
def test_every_row_occurs_exactly_once_an_epoch(count: int, size: int, together: bool) -> None:
    batches = EpochBatches(groups(count, 20), batch_size=size, seed=1, together=together)
    for epoch in range(3):
        batches.set_epoch(epoch)
        found = list(batches)
        assert {e for batch in found for e, _ in batch} == {epoch}
        assert sorted(row for batch in found for _, row in batch) == list(range(count))
        assert len(found) == len(batches)


@pytest.mark.parametrize(("count", "size"), [(8, 7), (100, 32), (129, 32), (1001, 64)])
def test_batches_are_few_and_even_and_never_too_large(count: int, size: int) -> None:
    sizes = [len(batch) for batch in EpochBatches(np.arange(count), batch_size=size, seed=1)]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // size)


@pytest.mark.parametrize("size", [16, 32, 100])
def test_groups_stay_together_and_a_batch_grows_by_less_than_a_group(size: int) -> None:
    group = groups(300, 120)
    largest = max(Counter(group.tolist()).values())
    batches = EpochBatches(group, batch_size=size, seed=1, together=True)
    for epoch in range(5):
        batches.set_epoch(epoch)
        found = [[int(group[row]) for _, row in batch] for batch in batches]
        homes = Counter(name for batch in found for name in set(batch))
        assert set(homes.values()) == {1}
        assert max(len(batch) for batch in found) < size + largest
        assert min(len(batch) for batch in found) > 0


def test_groups_larger_than_a_batch_still_give_every_row_once() -> None:
    batches = list(EpochBatches(np.array([5] * 40 + [6] * 3), batch_size=8, seed=1, together=True))
    assert sorted(row for batch in batches for _, row in batch) == list(range(43))
    assert all(0 < len(batch) <= 8 for batch in batches)


@pytest.mark.parametrize("together", [False, True])
def test_each_epoch_and_seed_has_its_own_order(together: bool) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(groups(60, 30), batch_size=8, seed=seed, together=together)
        batches.set_epoch(epoch)
        return [row for batch in batches for _, row in batch]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(4)}) == 12


def test_together_mixes_the_groups_that_meet() -> None:
    group = np.repeat(np.arange(40), 2)
    batches = EpochBatches(group, batch_size=20, seed=1, together=True)
    meetings = set()
    for epoch in range(4):
        batches.set_epoch(epoch)
        meetings.add(frozenset(int(group[row]) for _, row in next(iter(batches))))
    assert len(meetings) == 4


def test_lightning_sets_the_epoch_of_the_order() -> None:
    data = loader()
    orders = []
    for epoch in range(3):
        _set_sampler_epoch(data, epoch)
        orders.append([row for batch in data for _, row in batch])
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [1, 3, 7])
def test_a_resumed_epoch_gives_the_rest_and_the_next_epoch_everything(used: int, workers: int) -> None:
    first = loader(num_workers=workers)
    first.batches.set_epoch(4)
    whole: Batches = list(first)
    iterator = iter(first)
    for _ in range(used):
        next(iterator)
    state = first.state_dict()
    del iterator

    second = loader(num_workers=workers)
    second.load_state_dict(state)
    _set_sampler_epoch(second, 4)
    assert list(second) == whole[used:]
    _set_sampler_epoch(second, 5)
    following: Batches = list(second)
    assert len(following) == len(whole)
    assert following != whole


def test_a_state_taken_after_a_resume_counts_from_the_start_of_the_epoch() -> None:
    first = loader()
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    second = loader()
    second.load_state_dict(first.state_dict())
    iterator = iter(second)
    next(iterator)
    third = loader()
    third.load_state_dict(second.state_dict())
    assert list(third) == list(loader())[3:]


def test_a_state_taken_between_two_epochs_begins_the_second_one() -> None:
    first = loader()
    list(first)
    _set_sampler_epoch(first, 1)
    second = loader()
    second.load_state_dict(first.state_dict())
    _set_sampler_epoch(second, 1)
    assert sorted(row for batch in second for _, row in batch) == list(range(50))


def test_a_state_taken_right_after_a_resume_is_the_one_that_was_loaded() -> None:
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "used": 3})
    assert resumed.state_dict() == {"epoch": 2, "used": 3}


def test_loading_batches_draws_no_random_number_of_the_model() -> None:
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader())
    assert torch.equal(torch.rand(3), expected)
