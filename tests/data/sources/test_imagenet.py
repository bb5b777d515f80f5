"""ImageNet: ground-truth numbers follow meta.mat, not the order of wnids; folders and flat files agree."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from clipkit.data.records import Records
from clipkit.data.sources.imagenet import imagenet
from clipkit.errors import UserError
from conftest import Command

SYNSETS = [  # in the order of ILSVRC2012_ID, which is not that of wnids
    ("n02113186", "Cardigan, Cardigan Welsh corgi"),
    ("n01443537", "goldfish, Carassius auratus"),
    ("n03126707", "crane"),
    ("n02963159", "cardigan"),
    ("n02012849", "crane"),
    ("n01440764", "tench, Tinca tinca"),
    ("n03710637", "maillot"),
    ("n03710721", "maillot, tank suit"),
]
NAMES = (  # in the order of wnids
    "tench",
    "goldfish",
    "crane bird",
    "Cardigan, Cardigan Welsh corgi",
    "cardigan",
    "construction crane",
    "maillot",
    "maillot, tank suit",
)
TRUTH = [3, 1, 2, 8, 7, 6, 5, 4, 1, 2, 6, 6, 3, 4, 5, 7]
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH_FILE = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"


def save(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number * 10, 0, 9)).save(file, "PNG")  # exact colours, whatever the suffix


def meta(file: Path, shuffled: bool = True, drop: str = "") -> None:
    rows = [
        {"words": words, "WNID": wnid, "num_children": np.uint8(0), "ILSVRC2012_ID": np.int16(number), "gloss": "…"}
        for number, (wnid, words) in enumerate(SYNSETS, 1)
    ]
    parent = {"words": "entity", "WNID": "n00001740", "num_children": np.uint8(5), "ILSVRC2012_ID": np.int16(1001)}
    rows.insert(2, parent | {"gloss": "…"})
    rows = [{k: v for k, v in row.items() if k != drop} for row in rows]
    array = np.zeros((len(rows), 1), dtype=[(field, object) for field in rows[0]])
    for place, row in enumerate(rows[::-1] if shuffled else rows):
        array[place, 0] = tuple(row.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"synsets": array})


def flat(root: Path) -> None:
    for number in range(1, len(TRUTH) + 1):
        save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    meta(root / DEVKIT / "meta.mat")
    (root / TRUTH_FILE).write_text("".join(f"{number}\n" for number in TRUTH))


def folders(root: Path) -> None:
    for number, identity in enumerate(TRUTH, 1):
        save(root / "val" / SYNSETS[identity - 1][0] / f"ILSVRC2012_val_{number:08d}.JPEG", number)


def folders_with_devkit(root: Path) -> None:
    folders(root)
    meta(root / DEVKIT / "meta.mat", shuffled=False)


def table(records: Records) -> dict[int, tuple[str, int, str]]:
    """Class name, class number and split of each picture, by its content."""
    splits = records.table["split"].to_pylist()
    return {
        records.reader(records.image_name(i)).getpixel((0, 0))[0] // 10: (
            records.class_names[int(label)],
            int(label),
            splits[i],
        )
        for i, label in enumerate(records.labels)
    }


@pytest.mark.parametrize("write", [flat, folders, folders_with_devkit])
def test_every_layout_gives_the_same_classes(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    found = imagenet(tmp_path)
    assert found.class_names == NAMES
    wnids = sorted(wnid for wnid, _ in SYNSETS)
    expected = {}
    for number, identity in enumerate(TRUTH, 1):
        label = wnids.index(SYNSETS[identity - 1][0])
        expected[number] = (NAMES[label], label, "test")
    assert table(found) == expected
    assert found.notes == ("the official validation pictures are the test split",)


def test_train_folders_give_train_and_validation(tmp_path: Path) -> None:
    flat(tmp_path)
    for number, (wnid, _) in enumerate(SYNSETS):
        for i in range(10):
            save(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG", number)
    found = imagenet(tmp_path)
    splits = found.table["split"].to_pylist()
    assert Counter(splits) == {"train": 72, "val": 8, "test": 16}
    assert len(set(found.select("val").labels.tolist())) == 8
    wnids = sorted(wnid for wnid, _ in SYNSETS)
    for row in np.flatnonzero(np.array(splits) != "test"):
        assert found.image_name(int(row)).split("/")[1] == wnids[int(found.labels[row])]
    assert "a tenth of train" in found.notes[1]


def test_a_subset_of_the_classes_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n02012849", "n03888257"):
        save(tmp_path / "val" / wnid / "a.JPEG", 1)
    assert imagenet(tmp_path).class_names == ("tench", "crane bird", "parachute")


def test_the_names_of_all_thousand_classes_differ(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    for wnid in ImageNetInfo().label_names():
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "a.JPEG").touch()
    names = imagenet(tmp_path).class_names
    assert len({name.lower() for name in names}) == 1000
    assert sum("," in name for name in names) < 10


@pytest.mark.parametrize("gone", ["val", f"{DEVKIT}/meta.mat", TRUTH_FILE])
def test_what_is_missing_is_named_with_the_layouts(tmp_path: Path, gone: str) -> None:
    flat(tmp_path)
    shutil.rmtree(tmp_path / gone) if (tmp_path / gone).is_dir() else (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=rf"{Path(gone).name}.*expected ROOT/val/n01440764"):
        imagenet(tmp_path)


@pytest.mark.parametrize("line", ["0", "9", "-1", "tench"])
def test_a_class_out_of_range_is_named(tmp_path: Path, line: str) -> None:
    flat(tmp_path)
    (tmp_path / TRUTH_FILE).write_text("\n".join([*map(str, TRUTH[:-1]), line]))
    with pytest.raises(
        UserError, match=rf"ground_truth.txt, line 16: class '{line}' is out of range; 8 classes .* from 1"
    ):
        imagenet(tmp_path)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000017.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"])
def test_a_flat_picture_without_a_class_is_named(tmp_path: Path, name: str) -> None:
    flat(tmp_path)
    save(tmp_path / "val" / name, 1)
    with pytest.raises(UserError, match=rf"{name} is none of the 16 pictures"):
        imagenet(tmp_path)


def test_a_flat_picture_that_is_missing_does_not_move_the_others(tmp_path: Path) -> None:
    flat(tmp_path)
    before = imagenet(tmp_path)
    (tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    after = imagenet(tmp_path)
    assert after.table == before.table  # decoding finds it, and data.max_broken decides
    with pytest.raises(OSError, match="00000003"):
        after.reader(after.image_name(2))


def test_classes_without_pictures_are_named(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "val" / "n03888257").mkdir()
    with pytest.raises(UserError, match="1 of 9 classes have no picture: n03888257"):
        imagenet(tmp_path)
    shutil.rmtree(tmp_path)
    flat(tmp_path)
    (tmp_path / TRUTH_FILE).write_text("\n".join("1" for _ in TRUTH))
    with pytest.raises(UserError, match="7 of 8 classes have no picture: n01440764, "):
        imagenet(tmp_path)


def test_a_class_without_pictures_in_one_split_is_kept_and_listed(tmp_path: Path) -> None:
    folders_with_devkit(tmp_path)
    for wnid, _ in SYNSETS[1:]:
        for i in range(10):
            save(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG", i)
    (tmp_path / "train" / SYNSETS[0][0]).mkdir()
    found = imagenet(tmp_path)
    assert found.class_names == NAMES
    assert "1 of 8 classes have no picture in train: Cardigan, Cardigan Welsh corgi" in found.notes
    assert not any("in test" in note for note in found.notes)


def test_pictures_half_sorted_into_class_folders_are_refused(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "val" / "n01440764").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").rename(tmp_path / "val" / "n01440764" / "a.JPEG")
    with pytest.raises(UserError, match=r"val holds pictures \(.*00000002.JPEG …\) beside class folders \(n01440764"):
        imagenet(tmp_path)


def test_one_picture_under_two_names_is_refused(tmp_path: Path) -> None:
    flat(tmp_path)
    save(tmp_path / "val" / "ILSVRC2012_val_00000003.jpeg", 3)
    with pytest.raises(UserError, match=r"00000003\.jpeg is a duplicate of val/ILSVRC2012_val_00000003\.JPEG"):
        imagenet(tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("cats", "folders that are no wnids: cats"), ("n99999999", "'n99999999' is no wnid of ImageNet")],
)
def test_a_folder_that_is_no_wnid_is_named(tmp_path: Path, folder: str, message: str) -> None:
    folders(tmp_path)
    save(tmp_path / "val" / folder / "a.JPEG", 1)
    with pytest.raises(UserError, match=message):
        imagenet(tmp_path)


def test_an_empty_val_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="holds no class folders; expected ROOT/val"):
        imagenet(tmp_path)


def test_a_damaged_or_foreign_meta_file_is_a_user_error(tmp_path: Path) -> None:
    flat(tmp_path)
    file = tmp_path / DEVKIT / "meta.mat"
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"meta.mat"):
            imagenet(tmp_path)
    meta(file, drop="WNID")
    with pytest.raises(UserError, match="the structs of synsets lack WNID; found: words"):
        imagenet(tmp_path)
    meta(file)
    save(tmp_path / "train" / "n03888257" / "a.JPEG", 1)
    with pytest.raises(UserError, match=r"meta.mat does not name the class folder\(s\) n03888257"):
        imagenet(tmp_path)


@pytest.mark.slow
def test_a_model_is_evaluated_on_it_with_one_command(tmp_path: Path, clipkit: Command) -> None:
    flat(tmp_path / "data")
    done = clipkit("evaluate", "model=emoji_clip", "data=imagenet", f"data.root={tmp_path / 'data'}")
    assert done.returncode == 0, done.stdout + done.stderr
