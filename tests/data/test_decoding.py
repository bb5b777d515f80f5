"""Decoding: broken pictures are listed, good ones keep their own pixels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data.decoding import check_pictures, decode_all, fits_in_memory, in_order, refuse_if_broken
from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess

COLOURS = [(250, 10, 20), (10, 240, 30), (20, 30, 230), (128, 128, 128), (0, 0, 0)]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Records:
    """Five good pictures of one colour each, and five that cannot be read, in turn."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "bad_truncated.jpg")
    data = (tmp_path / "bad_truncated.jpg").read_bytes()
    (tmp_path / "bad_truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "bad_text.jpg").write_text("this is no picture")
    (tmp_path / "bad_empty.png").touch()
    (tmp_path / "bad_bomb.png").write_bytes(bomb())
    bad = ["bad_truncated.jpg", "bad_missing.jpg", "bad_text.jpg", "bad_empty.png", "bad_bomb.png"]
    rows = []
    for number, (colour, name) in enumerate(zip(COLOURS, bad, strict=True)):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"good{number}.png")
        rows += [Record(name, ("x",)), Record(f"good{number}.png", (f"number {number}",))]
    return Records.from_records(rows, reader=FolderReader(tmp_path))


BAD = ["bad_truncated.jpg", "bad_missing.jpg", "bad_text.jpg", "bad_empty.png", "bad_bomb.png"]


def test_broken_pictures_are_listed_and_good_ones_keep_their_pixels_and_captions(mixed: Records) -> None:
    kept, pixels, broken = decode_all(mixed, ImagePreprocess(8))
    assert [name for name, _ in broken] == BAD
    assert all(reason for _, reason in broken)
    assert [kept.captions(row) for row in range(5)] == [[f"number {i}"] for i in range(5)]
    for colour, picture in zip(COLOURS, pixels, strict=True):
        assert torch.equal(picture, torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))


def test_a_check_alone_finds_the_same_broken_pictures(mixed: Records) -> None:
    kept, broken = check_pictures(mixed)
    assert [name for name, _ in broken] == BAD
    assert kept.table.equals(decode_all(mixed, ImagePreprocess(8))[0].table)


def test_what_was_found_broken_is_remembered_until_a_picture_changes(mixed: Records, tmp_path: Path) -> None:
    cache, opened = tmp_path / "cache", []
    first = check_pictures(mixed, cache=cache, on_progress=lambda what, done, total: opened.append(done))
    assert opened
    opened.clear()
    again = check_pictures(mixed, cache=cache, on_progress=lambda what, done, total: opened.append(done))
    assert not opened
    assert again[1] == first[1]
    assert again[0].table.equals(first[0].table)
    Image.new("RGB", (20, 16)).save(tmp_path / "bad_missing.jpg")
    fresh = Records(mixed.table, FolderReader(tmp_path))
    assert [name for name, _ in check_pictures(fresh, cache=cache)[1]] == [
        name for name in BAD if "missing" not in name
    ]


def test_a_damaged_memory_of_the_check_is_not_believed(mixed: Records, tmp_path: Path) -> None:
    check_pictures(mixed, cache=tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"broken": ')
    assert [name for name, _ in check_pictures(mixed, cache=tmp_path / "cache")[1]] == BAD


def test_a_jpeg_that_ends_early_is_found_at_any_place(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    picture.save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    for share in (10, 50, 90, 99):
        (tmp_path / f"cut{share}.jpg").write_bytes(data[: len(data) * share // 100])
    names = ["whole.jpg", *(f"cut{share}.jpg" for share in (10, 50, 90, 99))]
    records = Records.from_records([Record(name) for name in names], reader=FolderReader(tmp_path))
    assert [name for name, _ in check_pictures(records)[1]] == names[1:]


def test_pixels_are_kept_in_memory_only_where_they_fit(mixed: Records) -> None:
    needed = 10 * 3 * 8 * 8 / 1e6
    assert fits_in_memory(mixed, ImagePreprocess(8), needed)
    assert not fits_in_memory(mixed, ImagePreprocess(8), needed * 0.99)


def test_no_pictures_at_all_are_no_error(tmp_path: Path) -> None:
    empty = Records.from_records([], reader=FolderReader(tmp_path))
    kept, pixels, broken = decode_all(empty, ImagePreprocess(8))
    assert (len(kept), len(pixels), broken) == (0, 0, [])
    assert check_pictures(empty) == (empty, [])


def test_work_by_threads_comes_back_in_order_and_does_not_run_far_ahead() -> None:
    begun = []

    def double(number: int) -> int:
        begun.append(number)
        return 2 * number

    results = in_order(double, range(1000), threads=3, ahead=4)
    assert next(results) == 0
    assert len(begun) < 50
    assert list(results) == [2 * number for number in range(1, 1000)]


def test_more_broken_pictures_than_allowed_are_refused_with_their_names() -> None:
    broken = [(f"picture{i}.jpg", "truncated") for i in range(12)]
    refuse_if_broken(broken, 100, 0.12, "broken.txt")
    with pytest.raises(
        UserError, match=r"(?s)12 of 100 pictures.*picture0\.jpg: truncated.*and 2 more.*broken\.txt"
    ) as e:
        refuse_if_broken(broken, 100, 0.11, "broken.txt")
    assert "picture9.jpg" in str(e.value)
    assert "picture10.jpg" not in str(e.value)
