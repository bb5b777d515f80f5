"""Pair lists: the same records from any kind of file, and mistakes named."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clipkit.data.records import Records
from clipkit.data.sources.pairs import pairs
from clipkit.errors import UserError

CAPTIONS = ["a cat, asleep", 'a "dog" barks', "deux\tmots", "ein Wort — 猫", "NA", "plain"]
KINDS = ["csv", "tsv", "jsonl", "parquet"]


def frame(rows: int = 24) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": [f"pictures/{i // 2}.jpg" for i in range(rows)],  # each picture twice
            "caption": [f"{CAPTIONS[i % len(CAPTIONS)]} {i}" if i % 6 != 4 else "NA" for i in range(rows)],
            "kind": [("animal", "word")[i // 2 % 2] for i in range(rows)],
        }
    )


def write(table: pd.DataFrame, file: Path) -> Path:
    if file.suffix == ".csv":
        table.to_csv(file, index=False)
    elif file.suffix == ".tsv":
        table.to_csv(file, index=False, sep="\t")
    elif file.suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        table.to_parquet(file)
    return file


def content(records: Records) -> list[tuple[Any, ...]]:
    splits = records.table["split"].to_pylist()
    return [
        (records.image_name(i), records.captions(i), int(records.labels[i]), splits[i]) for i in range(len(records))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_captions_that_were_written(tmp_path: Path, kind: str) -> None:
    table = frame()
    found = pairs(write(table, tmp_path / f"list.{kind}"), label_column="kind")
    expected = {name: group["caption"].tolist() for name, group in table.groupby("image")}
    assert {image: captions for image, captions, _, _ in content(found)} == expected
    assert found.class_names == ("animal", "word")
    assert [label for _, _, label, _ in content(found)] == [0, 1] * 6


def test_all_kinds_of_file_give_equal_records_and_splits(tmp_path: Path) -> None:
    tables = [content(pairs(write(frame(), tmp_path / f"list.{kind}"), label_column="kind")) for kind in KINDS]
    assert all(table == tables[0] for table in tables[1:])


def test_a_picture_listed_twice_is_one_picture_with_two_captions_in_one_split(tmp_path: Path) -> None:
    found = pairs(write(frame(200), tmp_path / "list.csv"))
    assert len(found) == 100
    assert Counter(len(captions) for _, captions, _, _ in content(found)) == {2: 100}
    assert Counter(split for *_, split in content(found)) == {"train": 70, "val": 10, "test": 20}
    assert any("70/10/20" in note for note in found.notes)


def test_a_csv_written_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = '\ufeffimage,caption\r\na.jpg,"a cat, asleep"\r\nb.jpg,"a ""dog"" barks"\r\nc.jpg,"two\nlines"\r\n'
    (tmp_path / "list.csv").write_bytes(text.encode())
    captions = [captions for _, captions, _, _ in content(pairs(tmp_path / "list.csv"))]
    assert captions == [["a cat, asleep"], ['a "dog" barks'], ["two\nlines"]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_captions_can_stand_in_one_list(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "caption": [["one", "two, three"], ["four"]]})
    found = pairs(write(table, tmp_path / f"list.{kind}"))
    assert [captions for _, captions, _, _ in content(found)] == [["one", "two, three"], ["four"]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_numbers_and_dates_in_columns_stay_what_they_look_like(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame({"image": ["007.jpg", "008.jpg"], "caption": ["1", "2024-05-01"], "kind": [3, 12]})
    found = pairs(write(table, tmp_path / f"list.{kind}"), label_column="kind")
    assert [captions for _, captions, _, _ in content(found)] == [["1"], ["2024-05-01"]]
    assert set(found.class_names) == {"3", "12"}


def test_a_split_column_is_followed_whatever_its_usual_names(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "image": [f"{i}.jpg" for i in range(6)],
            "caption": ["x"] * 6,
            "part": ["train", "restval", "dev", "Validation", " test", "TEST"],
        }
    )
    found = pairs(write(table, tmp_path / "list.csv"), split_column="part")
    assert [split for *_, split in content(found)] == ["train", "train", "val", "val", "test", "test"]
    assert found.notes == ()


def test_missing_validation_is_taken_from_training_and_that_is_said(tmp_path: Path) -> None:
    table = frame(100).assign(part=["train"] * 80 + ["test"] * 20)
    found = pairs(write(table, tmp_path / "list.csv"), split_column="part")
    assert Counter(split for *_, split in content(found)) == {"train": 36, "val": 4, "test": 10}
    assert any("validation" in note for note in found.notes)


def test_a_wrong_column_names_the_nearest_and_the_key(tmp_path: Path) -> None:
    table = frame().rename(columns={"caption": "captions", "image": "filename"})
    with pytest.raises(UserError, match=r"data\.caption_column=caption.*nearest: captions.*filename, captions, kind"):
        pairs(write(table, tmp_path / "list.csv"), image_column="filename")
    with pytest.raises(UserError, match=r"data\.image_column=image.*data\.label_column=sort"):
        pairs(write(table, tmp_path / "list.csv"), label_column="sort")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", ["", "   ", None])
def test_an_empty_caption_is_refused_with_its_picture(tmp_path: Path, kind: str, empty: str | None) -> None:
    table = pd.DataFrame({"image": ["a.jpg", "b.jpg", "c.jpg"], "caption": ["x", empty, "y"]})
    with pytest.raises(UserError, match=r"empty caption.*b\.jpg"):
        pairs(write(table, tmp_path / f"list.{kind}"))


def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "list.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"unknown kind.*\.csv.*\.parquet"):
        pairs(tmp_path / "list.xlsx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["noise", "empty", "missing"])
def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path: Path, kind: str, damage: str) -> None:
    file = tmp_path / f"list.{kind}"
    if damage == "noise":
        file.write_bytes(bytes(range(128, 256)) * 8)
    elif damage == "empty":
        file.touch()
    with pytest.raises(UserError, match=rf"list\.{kind}"):
        pairs(file)


def test_a_file_with_a_header_alone_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match="no rows"):
        pairs(tmp_path / "list.csv")


@pytest.mark.parametrize("column", ["kind", "part"])
def test_one_picture_with_two_labels_or_splits_is_refused(tmp_path: Path, column: str) -> None:
    table = pd.DataFrame(
        {"image": ["a.jpg", "a.jpg"], "caption": ["x", "y"], "kind": ["cat", "cat"], "part": ["train", "train"]}
    )
    table.loc[1, column] = {"kind": "dog", "part": "test"}[column]
    with pytest.raises(UserError, match=r"a\.jpg"):
        pairs(write(table, tmp_path / "list.csv"), label_column="kind", split_column="part")


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    table = frame().assign(part="holdout")
    with pytest.raises(UserError, match=r"holdout.*train, val, test"):
        pairs(write(table, tmp_path / "list.csv"), split_column="part")


def test_absolute_paths_below_the_lists_folder_are_read_as_relative_ones(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    names = [str(tmp_path / "link" / "p" / "a.jpg"), str(tmp_path / "real" / "p" / "b.jpg"), "p/a.jpg", "./p//b.jpg"]
    table = pd.DataFrame({"image": names, "caption": ["x", "y", "z", "w"]})
    found = pairs(write(table, tmp_path / "link" / "list.csv"))
    assert [(image, captions) for image, captions, _, _ in content(found)] == [
        ("p/a.jpg", ["x", "z"]),
        ("p/b.jpg", ["y", "w"]),
    ]


def test_a_caption_given_twice_counts_once_and_that_is_said(tmp_path: Path) -> None:
    rows = ["a.jpg,x", "b.jpg,x", "a.jpg,y", "a.jpg, x ", "b.jpg,z"]
    (tmp_path / "list.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    found = pairs(tmp_path / "list.csv")
    assert [captions for _, captions, _, _ in content(found)] == [["x", "y"], ["x", "z"]]
    assert "given twice to one picture count once: 1 picture(s), a.jpg" in found.notes[0]


def test_a_line_is_counted_where_its_row_starts(tmp_path: Path) -> None:
    text = 'image,caption\n\na.jpg,"one\ntwo\nthree"\n   \nb.jpg,""\n'
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"list\.csv, line 7: empty caption, for b\.jpg"):
        pairs(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text(text.replace('three"', "three"))
    with pytest.raises(UserError, match=r"list\.csv, line 3 cannot be read as CSV: .*quotation mark not closed"):
        pairs(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "image,caption\na.jpg,a cat, asleep\n", "line 2: 3 cells, but the header has 2"),
        ("list.csv", "image,caption\ra.jpg,x\r", "carriage returns"),
        ("list.csv", "image,image,caption\na,b,c\n", r"data\.image_column=image is the name of 2 columns"),
        ("list.tsv", 'image\tcaption\na.jpg\t"x" y\n', "line 2 cannot be read as TSV"),
        ("list.jsonl", '{"image": "a", "caption": "x"}\n{"image": "b"}\n', "line 2 has no 'caption'; found: image"),
        (
            "list.jsonl",
            '{"image": "a", "caption": "x"}\n{"image": "b", "caption": "x", "split": "test"}\n',
            "line 2 has a 'split', which line 1 has not",
        ),
        ("list.jsonl", '{"image": "a", "caption": {"text": "x"}}\n', r"line 1: the caption \{'text': 'x'\} is no text"),
        ("list.jsonl", '{"image": "a", "caption": ["x", null]}\n', "line 1: empty caption, for a"),
        ("list.jsonl", '{"image": "a", "caption": []}\n', "line 1: empty caption, for a"),
        ("list.jsonl", '["a", "x"]\n', "line 1 cannot be read: a JSON object is expected"),
        ("list.jsonl", "[" * 100_000, "line 1 cannot be read as JSON"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        pairs(tmp_path / name)


def test_a_class_that_a_split_lacks_is_kept_and_listed(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(6)], "caption": "x", "kind": list("aabbac")})
    table["split"] = ["train", "val", "train", "train", "test", "test"]
    found = pairs(write(table, tmp_path / "list.csv"), label_column="kind")
    assert found.class_names == ("a", "b", "c")
    assert found.notes == (
        "1 of 3 classes have no picture in train: c",
        "2 of 3 classes have no picture in val: b, c",
        "1 of 3 classes have no picture in test: b",
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize(
    ("kind", "rows", "limit"), [("csv", 1_000_000, 2000), ("jsonl", 10**5, 500), ("parquet", 10**5, 500)]
)
def test_a_million_rows_fit_in_two_gigabytes(tmp_path: Path, kind: str, rows: int, limit: int) -> None:
    table = pd.DataFrame(
        {
            "image": [f"images/{i // 1000:04d}/{i:09d}.jpg" for i in range(rows)],
            "caption": [f"a picture of something that has the number {i}" for i in range(rows)],
        }
    )
    write(table, tmp_path / f"list.{kind}")
    script = (  # ru_maxrss would start with what the process that tests has used
        "import re, sys\n"
        "from clipkit.data.sources.pairs import pairs\n"
        "count = len(pairs(sys.argv[1]))\n"
        "print(count, int(re.search(r'VmHWM:\\s+([0-9]+)', open('/proc/self/status').read())[1]) // 1024)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / f"list.{kind}")]
    count, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(count) == rows
    assert int(megabytes) < limit
