"""Decoding: broken pictures are listed, good ones keep their own pixels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data.decoding import decode_all, refuse_if_broken
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


@pytest.mark.parametrize("memory_limit", [1000, 0])
def test_broken_pictures_are_listed_and_good_ones_keep_their_pixels_and_captions(
    mixed: Records, memory_limit: float
) -> None:
    decoded, broken = decode_all(mixed, ImagePreprocess(8), memory_limit=memory_limit)
    names = [name for name, _ in broken]
    assert names == ["bad_truncated.jpg", "bad_missing.jpg", "bad_text.jpg", "bad_empty.png", "bad_bomb.png"]
    assert all(reason for _, reason in broken)
    kept = decoded.records
    assert [kept.captions(row) for row in range(5)] == [[f"number {i}"] for i in range(5)]
    order = kept.image_ids[[3, 0, 4, 1, 2]]
    pixels = decoded(order)
    for colour, picture in zip([COLOURS[i] for i in (3, 0, 4, 1, 2)], pixels, strict=True):
        assert torch.equal(picture, torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))


def test_pixels_are_kept_in_memory_only_where_they_fit(mixed: Records) -> None:
    needed = 10 * 3 * 8 * 8 / 1e6
    assert decode_all(mixed, ImagePreprocess(8), memory_limit=needed)[0].pixels is not None
    assert decode_all(mixed, ImagePreprocess(8), memory_limit=needed * 0.99)[0].pixels is None


def test_no_pictures_at_all_are_no_error(tmp_path: Path) -> None:
    empty = Records.from_records([], reader=FolderReader(tmp_path))
    decoded, broken = decode_all(empty, ImagePreprocess(8), memory_limit=1)
    assert broken == []
    assert len(decoded.records) == 0


def test_more_broken_pictures_than_allowed_are_refused_with_their_names() -> None:
    broken = [(f"picture{i}.jpg", "truncated") for i in range(12)]
    refuse_if_broken(broken, 100, 0.12, "broken.txt")
    with pytest.raises(
        UserError, match=r"(?s)12 of 100 pictures.*picture0\.jpg: truncated.*and 2 more.*broken\.txt"
    ) as e:
        refuse_if_broken(broken, 100, 0.11, "broken.txt")
    assert "picture9.jpg" in str(e.value)
    assert "picture10.jpg" not in str(e.value)
