"""Withheld classes are nowhere in what trains, validates or tests, and are handed over whole."""

import pytest
import torch

from clipkit.data.datamodule import PairData
from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.data.withholding import withhold
from clipkit.errors import UserError

NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
ROWS = [
    Record(f"{split}/{name}/{n}.jpg", (), number, split)
    for split in ("train", "val", "test")
    for number, name in enumerate(NAMES)
    for n in range(3)
]


def records(rows: list[Record] = ROWS) -> Records:
    return Records.from_records(rows, reader=FolderReader("/nowhere"), class_names=NAMES, name="pets")


def classes_of(found: Records) -> list[str]:
    """What each row's label says, by picture."""
    return [found.class_names[label] if label >= 0 else "" for label in found.labels]


def test_named_classes_go_with_all_their_pictures_and_labels_still_say_the_truth() -> None:
    known, withheld = withhold(records(), ["dog", "hen"])
    assert known.class_names == tuple(name for name in NAMES if name not in ("dog", "hen"))
    assert withheld.class_names == ("dog", "hen")
    for part in (known, withheld):
        assert classes_of(part) == [part.image_name(row).split("/")[1] for row in range(len(part))]
        assert set(part.table["split"].to_pylist()) == {"train", "val", "test"}
    assert sorted([*known.image_ids, *withheld.image_ids]) == list(range(len(ROWS)))


def test_what_was_left_out_is_said() -> None:
    known, _ = withhold(records(), ["dog", "hen"])
    assert known.notes == ("data.withhold=[dog, hen]: 2 of 8 classes, 18 pictures, are left out: dog, hen",)


def test_a_share_is_drawn_by_seed_and_names_alone() -> None:
    drawn = {seed: withhold(records(), 0.25, seed=seed)[1].class_names for seed in range(12)}
    assert all(len(names) == 2 for names in drawn.values())
    assert len(set(drawn.values())) > 4
    turned = [Record(row.image, (), 7 - NAMES.index(row.image.split("/")[1]), row.split) for row in ROWS]
    other = Records.from_records(turned, reader=FolderReader("/nowhere"), class_names=NAMES[::-1], name="pets")
    assert set(withhold(other, 0.25, seed=3)[1].class_names) == set(drawn[3])


def test_pictures_without_a_class_stay() -> None:
    known, withheld = withhold(records([*ROWS, Record("who.jpg", ("who knows",))]), ["cat"])
    assert known.image_name(len(known) - 1) == "who.jpg"
    assert known.labels[-1] == -1
    assert len(withheld) == 9


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["dig"], "there is no class 'dig', 'dog' perhaps; there are: cat, dog"),
        ([], "no class is named"),
        (list(NAMES[1:]), "of 8 classes 7 would go"),
        (0.99, "two or more have to stay"),
        (1.5, "a share between 0 and 1"),
        (0, "a share between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(asked: list[str] | float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        withhold(records(), asked)


def test_data_without_labels_are_refused_with_those_that_have_some() -> None:
    bare = Records.from_records([Record("a.jpg", ("a",))], reader=FolderReader("/nowhere"), name="captions")
    with pytest.raises(UserError, match="has no labels: use data with classes"):
        withhold(bare, ["cat"])


def test_shots_are_drawn_from_what_stays() -> None:
    data = PairData(
        records(),
        preprocess=lambda picture: torch.zeros(3, 8, 8),
        tokenize=lambda texts: {},
        shots=2,
        withhold=["cat", "gnu"],
    )
    assert data.count("train") == 2 * 6
    assert not any("/cat/" in name or "/gnu/" in name for name in data.records.table["image"].to_pylist())
