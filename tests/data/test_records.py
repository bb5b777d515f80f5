"""Records: what goes in comes out, and the fingerprint notices every change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.errors import UserError

ROWS = [
    Record("a.png", ("a cat", "un chat — 猫"), 1, "train", "seen", "cat"),
    Record("b.png", ("a cat",), 0, "val", "seen", "dog"),
    Record("c.png", (), None, "test", "unseen", "cat"),
    Record("d.png", ("", "x,\ny"), 1, "train", "", None),
]


def records(rows: list[Record] | None = None, root: str | Path = "/nowhere") -> Records:
    return Records.from_records(ROWS if rows is None else rows, reader=FolderReader(root), class_names=("no", "yes"))


def test_records_come_back_as_they_were_given() -> None:
    table = records()
    assert [table.image_name(i) for i in range(len(table))] == [row.image for row in ROWS]
    assert [tuple(table.captions(i)) for i in range(len(table))] == [row.captions for row in ROWS]
    assert table.labels.tolist() == [1, 0, -1, 1]
    assert table.image_ids.tolist() == [0, 1, 2, 3]
    group = table.groups.tolist()
    assert group[0] == group[2]
    assert len(set(group)) == 3


def test_no_records_are_a_table_too() -> None:
    empty = records([])
    assert len(empty) == 0
    assert empty.caption_offsets.tolist() == [0]
    assert len(empty.select("train")) == 0


def test_a_split_keeps_its_rows_with_their_ids_and_captions() -> None:
    train = records().select("train")
    assert train.image_ids.tolist() == [0, 3]
    assert train.captions(1) == ["", "x,\ny"]
    assert train.caption_offsets.tolist() == [0, 2, 4]
    assert records().select("test", "unseen").image_ids.tolist() == [2]
    assert len(records().select("test", "seen")) == 0


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_captions_are_found_through_their_distinct_texts(part: str) -> None:
    table, chosen = records(), records().select(part)
    texts, index = chosen.caption_texts
    assert len(set(texts.to_pylist())) == len(texts)
    said = [texts[int(i)].as_py() for i in index]
    assert said == [caption for row in ROWS if row.split == part for caption in row.captions]
    whole = table.caption_texts[0]
    assert [whole[int(i)].as_py() for i in table.text_rows(chosen)] == texts.to_pylist()


def test_leaving_out_pictures_leaves_the_others() -> None:
    rest = records().without([1, 3])
    assert rest.image_ids.tolist() == [0, 2]
    assert rest.image_name(1) == "c.png"


def test_one_picture_a_group_are_the_first_of_each() -> None:
    assert records().one_per_group(2).image_ids.tolist() == [0, 1]
    assert records().one_per_group(99).image_ids.tolist() == [0, 1, 3]


CHANGES: dict[str, Any] = {
    "picture": lambda rows: [replace(rows[0], image="z.png"), *rows[1:]],
    "caption": lambda rows: [replace(rows[0], captions=("a cat", "a bat")), *rows[1:]],
    "caption moved to another picture": lambda rows: [
        replace(rows[0], captions=("a cat",)),
        replace(rows[1], captions=("un chat — 猫", "a cat")),
        *rows[2:],
    ],
    "caption cut in two": lambda rows: [*rows[:3], replace(rows[3], captions=("", "x,", "\ny"))],
    "label": lambda rows: [replace(rows[0], label=0), *rows[1:]],
    "group": lambda rows: [replace(rows[0], group="dog"), *rows[1:]],
    "order": lambda rows: [rows[1], rows[0], *rows[2:]],
    "fewer": lambda rows: rows[:-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_the_content(change: str) -> None:
    assert records(CHANGES[change](ROWS)).fingerprint != records().fingerprint


def test_the_fingerprint_of_the_same_content_is_the_same() -> None:
    assert records().fingerprint == records(list(ROWS)).fingerprint


def test_the_fingerprint_changes_with_the_pixels_of_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    before = records(root=tmp_path).fingerprint
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    assert records(root=tmp_path).fingerprint != before


@pytest.mark.parametrize("caption", ["", "  ", "\n\t"])
def test_captions_without_a_letter_are_refused_with_the_picture_that_has_them(caption: str) -> None:
    table = records([Record("good.png", ("fine",)), Record("bad.png", ("fine too", caption))])
    with pytest.raises(UserError, match=r"1 empty caption.*bad\.png"):
        table.check_captions("list.csv")
