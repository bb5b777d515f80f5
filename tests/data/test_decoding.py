"""Decoding: broken pictures are listed, good ones keep their own pixels."""

from pathlib import Path

import pytest
import torch
from broken import BAD, COLOURS, mixed_pictures

from clipkit.data.decoding import decode_all, fits_in_memory, in_order, refuse_if_broken
from clipkit.data.images import FolderReader
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess


@pytest.fixture
def mixed(tmp_path: Path) -> Records:
    return mixed_pictures(tmp_path)


def test_broken_pictures_are_listed_and_good_ones_keep_their_pixels_and_captions(mixed: Records) -> None:
    kept, pixels, broken = decode_all(mixed, ImagePreprocess(8))
    assert [name for name, _ in broken] == BAD
    assert all(reason for _, reason in broken)
    assert [kept.captions(row) for row in range(5)] == [[f"number {i}"] for i in range(5)]
    for colour, picture in zip(COLOURS, pixels, strict=True):
        assert torch.equal(picture, torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))


def test_pixels_are_kept_in_memory_only_where_they_fit(mixed: Records) -> None:
    needed = 10 * 3 * 8 * 8 / 1e6
    assert fits_in_memory(mixed, ImagePreprocess(8), needed)
    assert not fits_in_memory(mixed, ImagePreprocess(8), needed * 0.99)


def test_no_pictures_at_all_are_no_error(tmp_path: Path) -> None:
    empty = Records.from_records([], reader=FolderReader(tmp_path))
    kept, pixels, broken = decode_all(empty, ImagePreprocess(8))
    assert (len(kept), len(pixels), broken) == (0, 0, [])


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
