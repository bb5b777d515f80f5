"""Class folders: with splits, without, and with validation missing."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data.records import Records
from clipkit.data.sources.folder import folder
from clipkit.errors import UserError


def fill(directory: Path, count: int, suffix: str = "png") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(directory / f"{i}.{suffix}")


def table(records: Records) -> dict[str, tuple[str, str]]:
    """Split and class of each picture."""
    splits = records.table["split"].to_pylist()
    return {
        records.image_name(i): (splits[i], records.class_names[int(label)]) for i, label in enumerate(records.labels)
    }


def test_class_names_are_folder_names_with_spaces(tmp_path: Path) -> None:
    fill(tmp_path / "polar_bear", 3)
    fill(tmp_path / "Ant", 3)
    assert folder(tmp_path).class_names == ("Ant", "polar bear")


def test_without_split_folders_each_class_is_divided_and_that_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog", 10)
    records = folder(tmp_path)
    assert Counter(table(records).values()) == {
        ("train", "cat"): 14,
        ("val", "cat"): 2,
        ("test", "cat"): 4,
        ("train", "dog"): 7,
        ("val", "dog"): 1,
        ("test", "dog"): 2,
    }
    assert all(name.startswith(label) for name, (_, label) in table(records).items())
    assert any("70/10/20" in note for note in records.notes)
    assert table(folder(tmp_path)) == table(records) != table(folder(tmp_path, split_seed=2))


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_kept(tmp_path: Path, val: str) -> None:
    for split, count in (("train", 5), (val, 2), ("test", 3)):
        fill(tmp_path / split / "cat", count)
        fill(tmp_path / split / "dog", count)
    found = folder(tmp_path)
    assert Counter(split for split, _ in table(found).values()) == {"train": 10, "val": 4, "test": 6}
    assert all(name.split("/")[1] == label for name, (_, label) in table(found).items())
    assert found.notes == ()


def test_missing_validation_is_taken_from_training_and_that_is_said(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 5)):
        fill(tmp_path / split / "cat", count)
    found = folder(tmp_path)
    assert Counter(split for split, _ in table(found).values()) == {"train": 18, "val": 2, "test": 5}
    assert all((split == "test") == name.startswith("test/") for name, (split, _) in table(found).items())
    assert any("no val folder" in note for note in found.notes)


def test_a_class_that_only_some_splits_have_keeps_one_number(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cat", 2)
    fill(tmp_path / "train" / "dog", 2)
    fill(tmp_path / "val" / "dog", 2)
    fill(tmp_path / "test" / "dog", 2)
    fill(tmp_path / "test" / "eel", 1)
    found = folder(tmp_path)
    assert found.class_names == ("cat", "dog", "eel")
    assert all(name.split("/")[1] == label for name, (_, label) in table(found).items())


def test_a_class_named_like_a_split_is_a_class_among_others(tmp_path: Path) -> None:
    for name in ("train", "bus", "plane"):  # vehicles
        fill(tmp_path / name, 10)
    assert folder(tmp_path).class_names == ("bus", "plane", "train")


def test_pictures_of_every_kind_and_depth_are_found_and_nothing_else(tmp_path: Path) -> None:
    for suffix in ("jpg", "JPEG", "png", "webp", "bmp", "gif", "tiff"):
        fill(tmp_path / "cat" / "deep", 1, suffix)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".hidden.png").write_text("x")
    (tmp_path / ".git").mkdir()
    found = folder(tmp_path)
    assert len(found) == 7
    assert found.class_names == ("cat",)
    assert found.reader(found.image_name(0)).size == (4, 4)


def test_a_missing_or_empty_folder_is_a_user_error_that_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder.*ROOT/CLASS"):
        folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no pictures.*ROOT/CLASS"):
        folder(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match="no pictures"):
        folder(tmp_path)


def test_a_class_that_a_split_lacks_is_kept_and_listed(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "test/cat", "train/dog", "test/eel"):
        fill(tmp_path / name, 2)
    (tmp_path / "val" / "dog").mkdir()
    found = folder(tmp_path)
    assert found.class_names == ("cat", "dog", "eel")
    assert found.notes == (
        "1 of 3 classes have no picture in train: eel",
        "2 of 3 classes have no picture in val: dog, eel",
        "1 of 3 classes have no picture in test: dog",
    )


@pytest.mark.parametrize("where", [("cat", "dog"), ("train/cat", "train/dog")])
def test_a_class_without_any_picture_is_refused_by_name(tmp_path: Path, where: tuple[str, str]) -> None:
    fill(tmp_path / where[0], 2)
    (tmp_path / where[1]).mkdir()
    with pytest.raises(UserError, match="1 of 2 classes have no picture: dog"):
        folder(tmp_path)


def test_pictures_beside_the_class_folders_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "test/cat"):
        fill(tmp_path / name, 2)
    fill(tmp_path, 1)
    fill(tmp_path / "train", 1)
    found = folder(tmp_path)
    assert len(found) == 6
    assert found.notes == ("2 picture(s) beside the class folders are left out: 0.png, train/0.png",)


def test_folders_beside_split_folders_are_left_out_if_empty_and_refused_if_not(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat"):
        fill(tmp_path / name, 2)
    (tmp_path / "annotations").mkdir()
    assert folder(tmp_path).class_names == ("cat",)
    assert any("annotations" in note for note in folder(tmp_path).notes)
    fill(tmp_path / "annotations" / "masks", 1)
    with pytest.raises(UserError, match=r"split folders \(train, val\) beside others with pictures \(annotations\)"):
        folder(tmp_path)


def test_classes_that_would_read_the_same_keep_their_folders_names(tmp_path: Path) -> None:
    fill(tmp_path / "polar_bear", 2)
    fill(tmp_path / "polar bear", 3)
    assert folder(tmp_path).class_names == ("polar bear", "polar_bear")


def test_the_order_of_pictures_is_that_of_their_paths_part_by_part(tmp_path: Path) -> None:
    for name in ("cat/a", "cat/a-b", "cat"):
        fill(tmp_path / name, 3)
    found = folder(tmp_path)
    names = [found.image_name(row) for row in range(len(found))]
    assert names == [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.png"))]
