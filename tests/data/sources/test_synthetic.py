"""Synthetic shapes: captions that are true of the pixels."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipkit.data.records import Records
from clipkit.data.sources.synthetic import synthetic

NEAR = {
    "red": (220, 40, 40),
    "green": (40, 170, 40),
    "blue": (30, 120, 200),
    "yellow": (240, 210, 20),
    "purple": (140, 60, 190),
    "black": (20, 20, 20),
}


@pytest.fixture(scope="module")
def records() -> Records:
    return synthetic(144, image_size=48)


def ink(records: Records, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and where it is not white."""
    pixels = np.asarray(records.reader(records.image_name(row)), np.float32)
    return pixels, np.abs(pixels - 255).max(2) > 60


def test_the_colour_in_the_caption_is_the_colour_in_the_picture(records: Records) -> None:
    for row in range(len(records)):
        pixels, drawn = ink(records, row)
        mean = np.median(pixels[drawn], axis=0)
        nearest = min(NEAR, key=lambda name: float(np.square(mean - NEAR[name]).sum()))
        assert all(nearest in caption.split() for caption in records.captions(row)), records.image_name(row)


def test_large_shapes_reach_further_than_small_ones(records: Records) -> None:
    reach: dict[str, list[float]] = {"small": [], "large": []}
    for row in range(len(records)):
        columns = np.flatnonzero(ink(records, row)[1].any(0))
        size = next(word for word in records.captions(row)[0].split() if word in reach)
        reach[size].append(columns[-1] - columns[0])
    assert max(reach["small"]) < min(reach["large"])


def test_the_class_is_the_shape_of_the_caption(records: Records) -> None:
    for row, label in enumerate(records.labels):
        assert records.captions(row)[0].split()[-1] == records.class_names[int(label)]


def test_all_kinds_occur_equally_often_and_pictures_of_one_kind_differ(records: Records) -> None:
    kinds = Counter(records.captions(row)[0] for row in range(len(records)))
    assert len(kinds) == 72
    assert set(kinds.values()) == {2}
    drawn = {np.asarray(records.reader(records.image_name(row))).tobytes() for row in range(len(records))}
    assert len(drawn) == len(records)


def test_a_picture_is_drawn_the_same_every_time(records: Records) -> None:
    again = synthetic(144, image_size=48)
    assert again.fingerprint == records.fingerprint
    assert np.array_equal(ink(again, 5)[0], ink(records, 5)[0])
    assert synthetic(144, image_size=32).fingerprint != records.fingerprint
    assert synthetic(144, image_size=48, split_seed=2).fingerprint != records.fingerprint


def test_pictures_are_split_seventy_ten_twenty() -> None:
    table = synthetic(600, image_size=16)
    counts = [len(table.select(split)) for split in ("train", "val", "test")]
    assert counts == pytest.approx([420, 60, 120], abs=6)


def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic(10, image_size=16).reader("large red circle 3")
    assert list(tmp_path.iterdir()) == []
