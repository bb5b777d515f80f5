"""Which pictures and captions mean the same."""

from typing import Any

import pytest

from clipkit.approaches.positives import positive_groups
from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records


def records(*rows: Record) -> Records:
    return Records.from_records(rows, reader=FolderReader("/nowhere"))


def sets(numbers: Any) -> set[frozenset[int]]:
    """Which indices carry equal numbers."""
    found: dict[int, set[int]] = {}
    for index, number in enumerate(numbers.tolist()):
        found.setdefault(number, set()).add(index)
    return {frozenset(members) for members in found.values()}


LINKED = records(
    Record("0.png", ("a cat", "a pet"), 0, group="A"),
    Record("1.png", ("a dog", "a pet"), 1, group="B"),
    Record("2.png", ("a dog",), 1, group="C"),
    Record("3.png", ("a bird",), None, group="A"),
    Record("4.png", ("a fish",), None, group="D"),
    Record("5.png", ("a whale",), 2, group="D"),
    Record("6.png", ("a mouse",), 1, group="E"),
)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ((), [{0}, {1}, {2}, {3}, {4}, {5}, {6}]),
        (("group",), [{0, 3}, {1}, {2}, {4, 5}, {6}]),
        (("caption",), [{0, 1, 2}, {3}, {4}, {5}, {6}]),  # 0 and 2 in a chain through 1
        (("class",), [{0}, {1, 2, 6}, {3}, {4}, {5}]),  # pictures without a class have no company
        (("group", "caption"), [{0, 1, 2, 3}, {4, 5}, {6}]),
        (("group", "caption", "class"), [{0, 1, 2, 3, 6}, {4, 5}]),
    ],
)
def test_pictures_are_joined_by_what_was_asked_for_also_in_chains(
    by: tuple[str, ...], expected: list[set[int]]
) -> None:
    image_group, _ = positive_groups(LINKED, by)
    assert sets(image_group) == {frozenset(members) for members in expected}


@pytest.mark.parametrize(
    "by", [("group",), ("caption",), ("group", "caption"), ("class",), ("group", "caption", "class")]
)
def test_every_text_belongs_with_a_picture_that_it_captions(by: tuple[str, ...]) -> None:
    image_group, text_group = positive_groups(LINKED, by)
    texts = LINKED.caption_texts[0].to_pylist()
    assert len(text_group) == len(texts) == len(set(texts))
    for text, group in zip(texts, text_group, strict=True):
        captioned = {int(image_group[row]) for row in range(len(LINKED)) if text in LINKED.captions(row)}
        assert int(group) in captioned
        if "caption" in by:
            assert captioned == {int(group)}
