"""Which pictures teach and which set thresholds: never the same, and the data set's own strangers where it has some."""

from collections import Counter

import numpy as np
import pytest

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.discovery.knowing import divided, known_pictures
from clipkit.errors import UserError

NAMES = ("cat", "dog", "eel")


def records(train: int, *, val: int = 0) -> Records:
    rows = [
        Record(f"{split}/{name}/{n}.jpg", (), number, split)
        for split, count in {"train": train, "val": val, "test": 3}.items()
        for number, name in enumerate(NAMES)
        for n in range(count)
    ]
    return Records.from_records(rows, reader=FolderReader("/nowhere"), class_names=NAMES, name="pets")


def counts(found: Records) -> dict[str, int]:
    return dict(Counter(found.table["split"].to_pylist()))


def test_with_enough_pictures_validation_is_drawn_as_for_few_shots() -> None:
    found, choice = known_pictures(records(20), shots=8, split_seed=1)
    assert counts(found) == {"train": 24, "val": 12, "test": 9}
    assert choice is not None
    assert choice.shots == 8


def test_validation_pictures_of_the_data_set_come_first() -> None:
    found, _ = known_pictures(records(20, val=5), shots=8, split_seed=1)
    assert counts(found) == {"train": 24, "val": 15, "test": 9}
    assert all(name.startswith("val/") for name in found.select("val").table["image"].to_pylist())
    assert found.notes[-1] == "validation: the data set's own 15 pictures instead"
    assert len(set(found.image_ids.tolist())) == len(found)


@pytest.mark.parametrize("shots", [16, None])
def test_where_all_pictures_train_a_fifth_of_each_class_validates_instead(shots: int | None) -> None:
    found, _ = known_pictures(records(10), shots=shots, split_seed=1)
    assert counts(found) == {"train": 24, "val": 6, "test": 9}
    assert np.bincount(found.select("val").labels).tolist() == [2, 2, 2]
    assert "6 training pictures set thresholds instead" in found.notes[-1]


def test_a_class_of_one_picture_keeps_it_and_one_of_two_gives_one() -> None:
    held = divided(np.array([0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]), 3)
    assert [int(held[np.array([0, 1, 1, *[2] * 10]) == label].sum()) for label in range(3)] == [0, 1, 2]
    assert divided(np.arange(10), 3).sum() == 2  # one picture a class: a fifth of all
    assert divided(np.arange(10), 3).tolist() == divided(np.arange(10), 3).tolist()
    with pytest.raises(UserError, match="1 known picture"):
        divided(np.zeros(1, np.int64), 3)
