"""What people name as pictures, and opening them batch by batch."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit.data.gallery import find_pictures, pixel_batches
from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pics/a.png, pics/deep/er/b.JPG, pics/c.png (no picture), pics/note.txt, hidden things."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "deep/er/b.JPG", ".hidden/d.png")):
        file = tmp_path / "pics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 10), (50 * number, 100, 0)).save(file)
    (tmp_path / "pics/c.png").write_text("no picture")
    (tmp_path / "pics/note.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("pics", ["pics/a.png", "pics/c.png", "pics/deep/er/b.JPG"]),
        ("pics/", ["pics/a.png", "pics/c.png", "pics/deep/er/b.JPG"]),
        ("pics/a.png", ["pics/a.png"]),
        ("pics/note.txt", ["pics/note.txt"]),  # a file is taken at its word
        ("pics/*", ["pics/a.png", "pics/c.png"]),
        ("pics/**/*.JPG", ["pics/deep/er/b.JPG"]),
        (["pics/deep", "pics/a.png", "pics"], ["pics/deep/er/b.JPG", "pics/a.png", "pics/c.png"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_folders_files_patterns_and_lists_name_pictures_once(places: str | list[str], expected: list[str]) -> None:
    gallery = find_pictures(places)
    assert list(gallery.names) == expected
    assert all(os.path.isabs(place) for place in gallery.places)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ("empty", "images=empty: no pictures in this folder"),
        ("nowhere", "images=nowhere: no such file or folder"),
        ("pics/*.txt", "no pictures match this pattern .*; 1 other"),
        ("pics/*.gif", "no pictures match"),
        ([], "no folder, file or pattern"),
        (["pics", "nowhere"], "images=nowhere"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_place_without_pictures_is_named(places: str | list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_pictures(places)


def test_a_file_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(b"x")
    for place in (str(tmp_path / "*.png"), os.fsdecode(name)):
        with pytest.raises(UserError, match="not UTF-8"):
            find_pictures(place)


def test_names_are_shortened_by_what_they_share(folder: Path) -> None:
    gallery = find_pictures("pics")
    assert [gallery.short(name) for name in gallery.names] == ["a.png", "c.png", "deep/er/b.JPG"]
    mixed = find_pictures(["pics/a.png", str(folder / "pics/deep")])
    assert mixed.short("pics/a.png") == "pics/a.png"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.usefixtures("folder")
def test_every_picture_comes_once_in_order_and_the_broken_ones_with_their_reason(batch_size: int) -> None:
    preprocess = ImagePreprocess(16)
    batches = list(pixel_batches(find_pictures("pics"), preprocess, batch_size=batch_size))
    assert [name for batch in batches for name in batch.names] == ["pics/a.png", "pics/deep/er/b.JPG"]
    assert [row for batch in batches for row in batch.broken] == [("pics/c.png", "not a picture of a known format")]
    pixels = torch.cat([batch.pixels for batch in batches if batch.names])
    assert torch.equal(pixels[0], preprocess(Image.open("pics/a.png")))
    assert torch.equal(pixels[1], preprocess(Image.open("pics/deep/er/b.JPG")))
