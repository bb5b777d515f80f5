"""Splits: stratified, by group, seeded."""

import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from clipkit.data.records import Record
from clipkit.data.splits import assign_splits, carve_validation, name_order


def shares(records: list[Record]) -> dict[str, float]:
    return {split: n / len(records) for split, n in Counter(record.split for record in records).items()}


def labelled(per_class: int, classes: int) -> list[Record]:
    return [Record(f"{c}/{i}.png", label=c) for c in range(classes) for i in range(per_class)]


@pytest.mark.parametrize("labels", [1, 7])
def test_seven_tenths_train_one_validates_and_two_test(labels: int) -> None:
    found = assign_splits([Record(f"{i}.png", label=i % labels) for i in range(700)], seed=1)
    assert shares(found) == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.01)


def test_unlabelled_pictures_are_split_alike() -> None:
    found = assign_splits([Record(f"{i}.png") for i in range(200)], seed=1)
    assert shares(found) == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.01)


def test_each_class_has_the_same_shares_however_unequal_the_classes_are() -> None:
    records = [Record(f"{c}/{i}.png", label=c) for c, count in enumerate((1000, 100, 20)) for i in range(count)]
    by_class = defaultdict(list)
    for record in assign_splits(records, seed=5):
        by_class[record.label].append(record)
    for members in by_class.values():
        assert shares(members) == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.051)


@pytest.mark.parametrize("per_class", [2, 3, 4, 5])
def test_many_small_classes_still_leave_pictures_to_validate_and_to_test_on(per_class: int) -> None:
    found = shares(assign_splits(labelled(per_class, 50), seed=1))
    assert min(found.get(split, 0) for split in ("train", "val", "test")) > 0.02


@pytest.mark.parametrize("per_class", [2, 4, 5])
def test_validation_is_carved_out_of_many_small_classes_too(per_class: int) -> None:
    assert shares(carve_validation(labelled(per_class, 50), seed=1)).get("val", 0) > 0.02


def test_records_of_one_group_are_never_divided() -> None:
    records = [Record(f"{i}.png", label=i % 3, group=f"concept {i // 3 % 40}") for i in range(240)]
    sides = defaultdict(set)
    for record in assign_splits(records, seed=2):
        sides[record.group].add(record.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "val", "test"}


def test_a_picture_listed_twice_stays_on_one_side() -> None:
    records = [Record(f"{i % 50}.png", (f"caption {i}",)) for i in range(100)]
    sides = defaultdict(set)
    for record in assign_splits(records, seed=2):
        sides[record.image].add(record.split)
    assert all(len(side) == 1 for side in sides.values())


def test_the_seed_decides_the_split_and_nothing_else_does() -> None:
    records = labelled(20, 4)
    assert assign_splits(records, seed=1) == assign_splits(records, seed=1)
    assert assign_splits(records, seed=1) != assign_splits(records, seed=2)


MIXED = [
    *(Record(f"{c}/{i:02}.png", label=c) for c in range(4) for i in range(11)),
    *(Record(f"none/{i}.png") for i in range(9)),
    *(Record(f"twins/{i}.png", label=i % 2, group=f"concept {i // 2}") for i in range(12)),
]


@pytest.mark.parametrize("divide", [assign_splits, carve_validation])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_order_in_which_pictures_are_listed_makes_no_difference(divide: Any, seed: int) -> None:
    expected = {record.image: record.split for record in divide(MIXED, seed=seed)}
    for shuffle in range(5):
        listed = random.Random(shuffle).sample(MIXED, len(MIXED))
        assert {record.image: record.split for record in divide(listed, seed=seed)} == expected


def test_copies_that_number_the_same_pictures_differently_are_divided_alike() -> None:
    labels = [0, 1, 2] * 40
    padded = assign_splits([Record(f"train/{i + 1:05}.jpg", label=c) for i, c in enumerate(labels)], seed=1)
    rows = assign_splits([Record(f"data/0000.parquet#{i}", label=c) for i, c in enumerate(labels)], seed=1)
    assert [record.split for record in padded] == [record.split for record in rows]


def test_names_are_in_order_when_their_numbers_are() -> None:
    ordered = ["", "07", "7", "9", "10", "a02.jpg", "a2.jpg", "a2b9", "a2b10", "a10.jpg", "a٣.jpg", f"b{'1' * 5000}"]
    for shuffle in range(5):
        assert sorted(random.Random(shuffle).sample(ordered, len(ordered)), key=name_order) == ordered


def test_a_split_is_the_same_on_every_machine() -> None:
    """Written down once: another Python, numpy or processor must give these."""
    found = assign_splits([Record(f"{label}/{name}.png", label=label) for label in (0, 1) for name in "abcde"], seed=1)
    assert " ".join(record.split for record in found) == "test val train train train train train test train train"


def test_a_split_changes_neither_order_nor_content() -> None:
    records = [Record(f"{i}.png", (f"caption {i}",), i % 3) for i in range(30)]
    for before, after in zip(records, assign_splits(records, seed=1), strict=True):
        assert (before.image, before.captions, before.label) == (after.image, after.captions, after.label)


def test_validation_is_carved_out_of_training_alone() -> None:
    records = [Record(f"{i}.png", label=i % 4, split="train" if i < 400 else "test") for i in range(500)]
    found = carve_validation(records, seed=1)
    assert {r.image for r in found if r.split == "test"} == {f"{i}.png" for i in range(400, 500)}
    assert Counter(r.split for r in found) == {"train": 360, "val": 40, "test": 100}
