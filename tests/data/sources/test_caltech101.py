"""Caltech-101: its folders wherever they lie, without the background class."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data.records import Records
from clipkit.data.sources.caltech101 import caltech101
from clipkit.errors import UserError

COUNTS = {"BACKGROUND_Google": 9, "Faces": 20, "Faces_easy": 10, "airplanes": 10, "ceiling_fan": 10, "yin_yang": 10}
PLACES = ["101_ObjectCategories", "caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"]


def fill(base: Path) -> None:
    for number, (name, count) in enumerate(COUNTS.items()):
        (base / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (number, i, 0)).save(base / name / f"image_{i + 1:04d}.jpg")
    (base / "Faces" / ".DS_Store").write_bytes(b"x")
    (base / ".git").mkdir()


def table(records: Records) -> dict[str, tuple[str, str]]:
    """Split and class of each picture, by its last two names."""
    splits = records.table["split"].to_pylist()
    return {
        "/".join(Path(records.image_name(i)).parts[-2:]): (splits[i], records.class_names[int(label)])
        for i, label in enumerate(records.labels)
    }


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_classes_and_splits(tmp_path: Path, place: str) -> None:
    fill(tmp_path / "root" / place)
    found = caltech101(tmp_path / "root")
    assert found.class_names == ("off-center face", "centered face", "airplane", "ceiling fan", "yin yang")
    assert Counter(table(found).values())[("train", "off-center face")] == 14
    assert Counter(split for split, _ in table(found).values()) == {"train": 42, "val": 6, "test": 12}
    assert not any(name.startswith("BACKGROUND") for name in table(found))
    assert all(found.reader(found.image_name(row)).size == (4, 4) for row in range(len(found)))
    assert "70/10/20" in found.notes[0]
    assert table(caltech101(tmp_path / "root", split_seed=2)) != table(found)
    fill(tmp_path / "reference" / "101_ObjectCategories")
    assert table(caltech101(tmp_path / "reference" / "101_ObjectCategories")) == table(found)


def test_a_missing_packed_or_empty_folder_is_named_with_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder 101_ObjectCategories found; expected ROOT/101"):
        caltech101(tmp_path)
    (tmp_path / "101_ObjectCategories.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"101_ObjectCategories.tar.gz is still packed"):
        caltech101(tmp_path)
    (tmp_path / "101_ObjectCategories").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        caltech101(tmp_path)


def test_a_class_without_a_picture_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "101_ObjectCategories")
    (tmp_path / "101_ObjectCategories" / "okapi").mkdir()
    with pytest.raises(UserError, match="1 of 6 classes have no picture: okapi"):
        caltech101(tmp_path)


def test_a_class_too_small_for_all_splits_is_kept_and_listed(tmp_path: Path) -> None:
    fill(tmp_path / "101_ObjectCategories")
    (tmp_path / "101_ObjectCategories" / "okapi").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "101_ObjectCategories" / "okapi" / "a.jpg")
    found = caltech101(tmp_path)
    lacking = [note for note in found.notes if "1 of 6 classes have no picture in" in note]
    assert len(lacking) == 2
    assert all(note.endswith(": okapi") for note in lacking)
