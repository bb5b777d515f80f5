"""Five good pictures of one colour each, and five that cannot be read."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records

COLOURS = [(250, 10, 20), (10, 240, 30), (20, 30, 230), (128, 128, 128), (0, 0, 0)]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def mixed_pictures(tmp_path: Path) -> Records:
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
