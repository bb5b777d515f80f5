"""Opening every picture: the broken ones, the sizes of the others, and what is remembered of it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from broken import BAD, mixed_pictures
from PIL import Image

from clipkit.data.checking import check_pictures
from clipkit.data.decoding import decode_all
from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.models.preprocess import ImagePreprocess


@pytest.fixture
def mixed(tmp_path: Path) -> Records:
    return mixed_pictures(tmp_path)


@pytest.mark.parametrize("threads", [1, 5])
def test_broken_pictures_are_named_and_the_others_measured_upright(tmp_path: Path, threads: int) -> None:
    sizes = Counter[tuple[int, int]]()
    for number in range(40):
        size = [(30, 20), (20, 30), (7, 9)][number % 3]
        turned = Image.Exif()
        turned[0x0112] = 6  # lies on its side
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.jpg", exif=turned if number % 4 == 0 else b"")
        if number not in (8, 20, 33):
            sizes[size[::-1] if number % 4 == 0 else size] += 1
    (tmp_path / "8.jpg").write_bytes(b"no picture")
    (tmp_path / "20.jpg").unlink()
    (tmp_path / "33.jpg").write_bytes((tmp_path / "33.jpg").read_bytes()[:300])
    rows = [Record(f"{number}.jpg", ("a",)) for number in range(40)]
    records = Records.from_records(rows, reader=FolderReader(tmp_path))
    said = []
    found = check_pictures(records, threads=threads, on_progress=lambda *progress: said.append(progress))
    assert [name for name, _ in found.broken] == ["8.jpg", "20.jpg", "33.jpg"]
    assert "No such file" in found.broken[1][1]
    assert found.sizes == sizes
    assert len(found.readable) == 37
    assert found.readable.reader is records.reader
    assert said[-1] == ("checking pictures", 40, 40)


def test_a_check_alone_finds_the_same_broken_pictures(mixed: Records) -> None:
    found = check_pictures(mixed)
    assert [name for name, _ in found.broken] == BAD
    assert found.readable.table.equals(decode_all(mixed, ImagePreprocess(8))[0].table)


def test_what_was_found_broken_is_remembered_until_a_picture_changes(mixed: Records, tmp_path: Path) -> None:
    cache, opened = tmp_path / "cache", []
    first = check_pictures(mixed, cache=cache, on_progress=lambda what, done, total: opened.append(done))
    assert opened
    opened.clear()
    again = check_pictures(mixed, cache=cache, on_progress=lambda what, done, total: opened.append(done))
    assert not opened
    assert (again.broken, again.sizes) == (first.broken, first.sizes)
    assert again.readable.table.equals(first.readable.table)
    Image.new("RGB", (20, 16)).save(tmp_path / "bad_missing.jpg")
    fresh = Records(mixed.table, FolderReader(tmp_path))
    assert [name for name, _ in check_pictures(fresh, cache=cache).broken] == [
        name for name in BAD if "missing" not in name
    ]


def test_a_damaged_memory_of_the_check_is_not_believed(mixed: Records, tmp_path: Path) -> None:
    check_pictures(mixed, cache=tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"broken": ')
    assert [name for name, _ in check_pictures(mixed, cache=tmp_path / "cache").broken] == BAD


def test_a_jpeg_that_ends_early_is_found_at_any_place(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    picture.save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    for share in (10, 50, 90, 99):
        (tmp_path / f"cut{share}.jpg").write_bytes(data[: len(data) * share // 100])
    names = ["whole.jpg", *(f"cut{share}.jpg" for share in (10, 50, 90, 99))]
    records = Records.from_records([Record(name) for name in names], reader=FolderReader(tmp_path))
    assert [name for name, _ in check_pictures(records).broken] == names[1:]


def test_no_pictures_at_all_are_no_error(tmp_path: Path) -> None:
    empty = Records.from_records([], reader=FolderReader(tmp_path))
    found = check_pictures(empty)
    assert (len(found.readable), found.broken, found.sizes) == (0, [], Counter())


def test_a_memory_that_cannot_be_written_is_no_error(mixed: Records, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert [name for name, _ in check_pictures(mixed, cache=tmp_path / "cache").broken] == BAD
