"""What a reader says that it read: whatever would change its table changes a file or folder that it names."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import test_cars
import test_class_folder
import test_imagenet
from layouts import (
    save_pictures,
    write_coco_2017,
    write_coco_karpathy,
    write_flickr8k_kaggle,
    write_flickr8k_original,
    write_flickr30k_kaggle,
    write_flickr_karpathy,
)
from mistakes import ROWS, write_caltech, write_folder, write_rows

from clipkit.data.records import Records
from clipkit.data.sources.caltech101 import caltech101
from clipkit.data.sources.cars import cars
from clipkit.data.sources.coco import coco
from clipkit.data.sources.flickr import flickr8k, flickr30k
from clipkit.data.sources.folder import folder
from clipkit.data.sources.imagenet import imagenet
from clipkit.data.sources.pairs import pairs

Step = Callable[[Path], object]
Stamps = dict[Path, tuple[int, int] | None]


def stamps(records: Records) -> Stamps:
    """What a cache would remember of the inputs: size and time, or that there is none."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None for path in records.inputs}


def age(root: Path) -> None:
    """As if all had been there for long: two changes within one tick of the clock would look like one."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**18, 10**18))


def new(name: str) -> Step:
    """A file or, with a slash at its end, a folder that was not there."""

    def make(root: Path) -> None:
        path = root / name
        assert not path.exists()
        path.mkdir(parents=True) if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
        _ = None if name.endswith("/") else path.write_bytes(b"x")

    return make


def changed(name: str) -> Step:
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + b" ")


def gone(name: str) -> Step:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def moved(name: str, to: str) -> Step:
    def make(root: Path) -> None:
        (root / to).parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(root / to)

    return make


def both(*steps: Step) -> Step:
    return lambda root: [step(root) for step in steps]


def suffixed(root: Path) -> None:
    """A caption of a picture a.jpg.1, of which there is no file."""
    write_flickr8k_original(root)
    with (root / "Flickr8k.token.txt").open("a") as file:
        file.write("a.jpg.1#0\ta cat\n")


def nested(root: Path) -> None:
    write_folder(root)
    test_class_folder.fill(root / "train" / "cat" / "deep" / "deeper", 1)


def without(write: Step, *names: str) -> Step:
    return both(write, *(gone(name) for name in names))


LISTS = [f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")]
TRAIN2017, VAL2017 = "annotations/captions_train2017.json", "annotations/captions_val2017.json"
LABELS, DEVKIT, TRUTH = "cars_test_annos_withlabels.mat", test_imagenet.DEVKIT, test_imagenet.TRUTH_FILE
CALTECH, WNID = "101_ObjectCategories", test_imagenet.SYNSETS[0][0]
SHARDS = [f"data/train-0000{number}-of-00002.parquet" for number in (0, 1)]

CASES: dict[str, tuple[Step, Callable[[Path], Records], Step]] = {
    "coco: captions of train change": (write_coco_2017, coco, changed(TRAIN2017)),
    "coco: captions of val change": (write_coco_2017, coco, changed(VAL2017)),
    "coco: captions of train appear": (without(write_coco_2017, TRAIN2017), coco, new(TRAIN2017)),
    "coco: captions of val vanish": (write_coco_2017, coco, gone(VAL2017)),
    "coco: a better folder of pictures": (
        lambda root: write_coco_2017(root, images="images"),
        coco,
        new("train2017/000000000000.jpg"),
    ),
    "coco: the folder of pictures appears": (without(write_coco_2017, "train2017"), coco, new("train2017/")),
    "coco: Karpathy's file appears": (write_coco_2017, coco, new("dataset_coco.json")),
    "coco: Karpathy's file appears further down": (write_coco_2017, coco, new("annotations/dataset_coco.json")),
    "karpathy: the file changes": (write_coco_karpathy, coco, changed("dataset_coco.json")),
    "karpathy: a better file": (
        lambda root: write_coco_karpathy(root, annotations="annotations"),
        coco,
        new("dataset_coco.json"),
    ),
    "karpathy: a folder appears": (without(write_coco_karpathy, "train2014"), coco, new("images/train2014/")),
    "flickr8k: captions change": (write_flickr8k_kaggle, flickr8k, changed("captions.txt")),
    "flickr8k: the original appears": (write_flickr8k_kaggle, flickr8k, new("Flickr8k_text/Flickr8k.token.txt")),
    "flickr8k: Karpathy's appears": (write_flickr8k_original, flickr8k, new("dataset_flickr8k.json")),
    "flickr8k: a list changes": (write_flickr8k_original, flickr8k, changed(LISTS[1])),
    "flickr8k: a list appears": (without(write_flickr8k_original, *LISTS), flickr8k, new(LISTS[0])),
    "flickr8k: a better folder": (write_flickr8k_kaggle, flickr8k, new("Flicker8k_Dataset/100_ab0.jpg")),
    "flickr8k: a suffixed picture appears": (suffixed, flickr8k, new("Flicker8k_Dataset/a.jpg.1")),
    "flickr8k: a picture without its suffix appears": (suffixed, flickr8k, new("Flicker8k_Dataset/a.jpg")),
    "flickr karpathy: the file changes": (
        lambda root: write_flickr_karpathy(root, "flickr30k", "Images"),
        flickr30k,
        changed("dataset_flickr30k.json"),
    ),
    "flickr30k: captions change": (write_flickr30k_kaggle, flickr30k, changed("results.csv")),
    "flickr30k: the original appears": (write_flickr30k_kaggle, flickr30k, new("results_20130124.token")),
    "flickr30k: a better folder": (
        lambda root: write_flickr30k_kaggle(root, folder="Images"),
        flickr30k,
        new("flickr30k_images/flickr30k_images/100.jpg"),
    ),
    "cars: annotations change": (test_cars.original, cars, changed("devkit/cars_train_annos.mat")),
    "cars: labels of test change": (test_cars.original, cars, changed(LABELS)),
    "cars: class names change": (test_cars.original, cars, changed("devkit/cars_meta.mat")),
    "cars: labels of test appear": (without(test_cars.original, LABELS), cars, new(LABELS)),
    "cars: labels of test in the devkit": (test_cars.original, cars, new(f"devkit/{LABELS}")),
    "cars: a better devkit": (test_cars.kaggle, cars, new("devkit/cars_train_annos.mat")),
    "cars: nested pictures": (test_cars.original, cars, new("cars_train/cars_train/")),
    "cars combined: annotations change": (test_cars.combined, cars, changed("cars_annos.mat")),
    "cars combined: a devkit appears": (test_cars.combined, cars, new("car_devkit/devkit/cars_train_annos.mat")),
    "cars parquet: a shard changes": (test_cars.mirror, cars, changed(SHARDS[1])),
    "cars parquet: a shard vanishes": (test_cars.mirror, cars, gone(SHARDS[0])),
    "cars parquet: a shard appears": (test_cars.mirror, cars, new("data/test-00001-of-00002.parquet")),
    "cars parquet: test appears": (
        without(test_cars.mirror, "data/test-00000-of-00001.parquet"),
        cars,
        new("test-00000-of-00001.parquet"),
    ),
    "cars parquet: a devkit appears": (test_cars.mirror, cars, new("stanford_cars/devkit/cars_train_annos.mat")),
    "folder: a picture more": (write_folder, folder, new("train/cat/9.png")),
    "folder: a picture less": (write_folder, folder, gone("val/dog/0.png")),
    "folder: a picture with another name": (write_folder, folder, moved("val/dog/0.png", "val/dog/9.png")),
    "folder: a picture deep down": (nested, folder, new("train/cat/deep/deeper/9.png")),
    "folder: a new class": (write_folder, folder, new("test/eel/")),
    "folder: a new split": (without(write_folder, "test"), folder, new("test/")),
    "folder: a class less": (write_folder, folder, gone("val/dog")),
    "folder: a picture beside the classes": (write_folder, folder, new("train/loose.png")),
    "folder: a picture in the root": (write_folder, folder, new("loose.png")),
    "folder: other folders are filled": (both(write_folder, new("more/")), folder, new("more/9.png")),
    "caltech101: a picture more": (write_caltech, caltech101, new(f"{CALTECH}/Faces/9.jpg")),
    "caltech101: a picture less": (write_caltech, caltech101, gone(f"{CALTECH}/Faces/image_0001.jpg")),
    "caltech101: a new class": (write_caltech, caltech101, new(f"{CALTECH}/okapi/")),
    "caltech101: a better place": (
        both(write_caltech, moved(CALTECH, f"caltech-101/{CALTECH}")),
        caltech101,
        new(f"{CALTECH}/"),
    ),
    "imagenet: a picture more": (test_imagenet.folders_with_devkit, imagenet, new(f"val/{WNID}/a.JPEG")),
    "imagenet: a new class": (test_imagenet.folders_with_devkit, imagenet, new("val/n03888257/")),
    "imagenet: train appears": (test_imagenet.folders_with_devkit, imagenet, new("train/")),
    "imagenet: class names change": (test_imagenet.folders_with_devkit, imagenet, changed(f"{DEVKIT}/meta.mat")),
    "imagenet: a flat picture more": (test_imagenet.flat, imagenet, new("val/ILSVRC2012_val_00000017.JPEG")),
    "imagenet: the ground truth changes": (test_imagenet.flat, imagenet, changed(TRUTH)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_would_change_the_table_changes_an_input(tmp_path: Path, case: str) -> None:
    write, read, change = CASES[case]
    write(tmp_path)
    age(tmp_path)
    records = read(tmp_path)
    before = stamps(records)
    assert before == stamps(read(tmp_path))
    change(tmp_path)
    assert stamps(records) != before


def test_pictures_are_no_inputs_of_a_list(tmp_path: Path) -> None:
    write_coco_2017(tmp_path)
    age(tmp_path)
    records = coco(tmp_path)
    before = stamps(records)
    save_pictures(tmp_path / "train2017", ["another.jpg"])
    (tmp_path / "val2017" / "000000000287.jpg").unlink()
    assert stamps(records) == before
    assert len(before) < 10


def test_an_imagenet_without_devkit_would_notice_one(tmp_path: Path) -> None:
    test_imagenet.folders(tmp_path)
    records = imagenet(tmp_path)
    before = stamps(records)
    test_imagenet.meta(tmp_path / DEVKIT / "meta.mat")
    assert stamps(records) != before


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_the_list_is_the_one_input_of_pairs(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"list.{kind}"
    write_rows(file, ROWS)
    assert pairs(file).inputs == (file,)
