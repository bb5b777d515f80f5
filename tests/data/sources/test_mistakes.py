"""Every mistake in every format: one message that names the file, the place in it, and what is wrong.

What is no mistake in a format, or cannot be seen in it, stands in `NOT_THERE` with the reason.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cars
import test_class_folder
import test_imagenet
from layouts import (
    write_coco_2017,
    write_coco_karpathy,
    write_flickr8k_kaggle,
    write_flickr8k_original,
    write_flickr30k_kaggle,
    write_flickr30k_original,
    write_flickr_karpathy,
    write_json,
)
from mistakes import (
    ROWS,
    SHARD,
    Break,
    Rename,
    all_shards,
    batch,
    both_gone,
    cars_rows,
    cell,
    combined_rows,
    cut,
    emptied,
    entry,
    gone,
    latin,
    line,
    more_cars,
    not_utf8,
    rename_cars,
    rename_combined,
    renamed_entry,
    renamed_line,
    second_synset,
    shard,
    without_captions,
    write_caltech,
    write_cifar,
    write_folder,
    write_imagenet,
    write_rows,
)

from clipkit.data.records import Records
from clipkit.data.sources.caltech101 import caltech101
from clipkit.data.sources.cars import cars
from clipkit.data.sources.cifar10 import cifar10
from clipkit.data.sources.coco import coco
from clipkit.data.sources.flickr import flickr8k, flickr30k
from clipkit.data.sources.folder import folder
from clipkit.data.sources.imagenet import imagenet
from clipkit.data.sources.pairs import pairs
from clipkit.errors import UserError

MISTAKES = (
    "missing file",
    "wrong column",
    "duplicate",
    "caption without image",
    "image without caption",
    "label out of range",
    "class without image",
    "not UTF-8",
    "path outside",
    "empty file",
    "truncated file",
)


@dataclass(frozen=True)
class Said:
    """A mistake that is left out of the records, and said in their notes."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A layout, and for each mistake how it is made and the words that the message must hold.

    Args:
        write: the layout, without a mistake, into a folder.
        read: its reader.
        cells: by mistake.
        rename: gives the third picture of the list another name, and returns the words that say where.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Records]
    cells: dict[str, tuple[Break, tuple[str, ...] | Said]]
    rename: Rename | None = None


def pairs_format(kind: str) -> Format:
    file = f"list.{kind}"
    # where the row of index 2 is said to be: under a header, at the start, or counted from 0
    place = {"csv": "line 4", "tsv": "line 4", "jsonl": "line 3", "parquet": "row 2 (counted from 0)"}[kind]
    first = {"csv": "line 2", "tsv": "line 2", "jsonl": "line 1", "parquet": "row 0 (counted from 0)"}[kind]
    where = (file, place)

    def rename(root: Path, new: Any) -> tuple[str, ...]:
        cell(file, 2, "image", new)(root)
        return where

    cells: dict[str, tuple[Break, tuple[str, ...] | Said]] = {
        "missing file": (gone(file), (file, "no such file")),
        "wrong column": (
            lambda root: write_rows(root / file, ROWS, ("file", "captions", "kind", "split")),
            (file, "data.image_column=image is not a column", "nearest: captions", "file, captions, kind, split"),
        ),
        "duplicate": (
            lambda root: write_rows(root / file, [*ROWS, ROWS[2]]),
            Said(("captions given twice", "1 picture(s), pictures/2.jpg")),
        ),
        "caption without image": (cell(file, 2, "image", ""), (*where, "is no file name")),
        "image without caption": (cell(file, 2, "caption", " "), (*where, "empty caption", "pictures/2.jpg")),
        "label out of range": (cell(file, 2, "kind", ""), (*where, "empty label")),
        "path outside": (cell(file, 2, "image", "../a.jpg"), (*where, "'../a.jpg'", "is not below", "move the list")),
        "empty file": (emptied(file), (file, "cannot be read as")),
        "truncated file": (
            cut(file, 0.97),
            (file, {"jsonl": "line 12", "parquet": "cannot be read"}.get(kind, "line 13")),
        ),
        "two labels": (
            lambda root: write_rows(root / file, [*ROWS[:2], [*ROWS[0][:2], "dog", "train"]]),
            (*where, "another label or split", first),
        ),
        "wrong split": (cell(file, 2, "split", "holdout"), (*where, "split 'holdout' is none of train, val, test")),
    }
    if kind != "parquet":
        line_number = int(place.split()[1])
        cells["not UTF-8"] = (latin(file, line_number, "a picture", b"un \xe9l\xe9phant"), (*where, "not UTF-8"))
    return Format(
        write=lambda root: write_rows(root / file, ROWS),
        read=lambda root: pairs(root / file, label_column="kind"),
        cells=cells,
        rename=rename,
    )


TRAIN2017, KARPATHY, KAGGLE = "annotations/captions_train2017.json", "dataset_coco.json", "captions.txt"
TOKEN, TOKEN30, RESULTS = "Flickr8k.token.txt", "results_20130124.token", "results.csv"
TRUTH, WNID = test_imagenet.TRUTH_FILE, test_imagenet.SYNSETS[0][0]


def karpathy_cells(name: str, missing: tuple[str, ...]) -> dict[str, tuple[Break, tuple[str, ...] | Said]]:
    where = (name, "images[2]")
    return {
        "missing file": (gone(name), missing),
        "wrong column": (entry(name, "images", 2, sentences=None), (*where, "has no list of sentences")),
        "image without caption": (entry(name, "images", 2, sentences=[]), Said((name, "1 picture(s) left out"))),
        "not UTF-8": (latin(name, 1, "drawn", b"dessin\xe9"), (f"{name}, line 1", "not UTF-8")),
        "path outside": (entry(name, "images", 2, filename="../a.jpg"), (*where, "'../a.jpg' is no file name")),
        "empty file": (emptied(name), (name, "no JSON, or damaged")),
        "truncated file": (cut(name), (name, "no JSON, or damaged")),
        "wrong split": (entry(name, "images", 2, split="holdout"), (*where, "'holdout' is none of")),
    }


FORMATS = {
    "coco 2017": Format(
        write_coco_2017,
        coco,
        {
            "missing file": (
                both_gone(TRAIN2017, "annotations/captions_val2017.json"),
                (f"{TRAIN2017}: no such file", "dataset_coco.json", "cocodataset.org"),
            ),
            "wrong column": (
                entry(TRAIN2017, "annotations", 2, caption=None),
                (TRAIN2017, "annotations[2]", "caption"),
            ),
            "duplicate": (entry(TRAIN2017, "images", 2, id=7), (TRAIN2017, "images[2]", "duplicate of id 7")),
            "caption without image": (
                entry(TRAIN2017, "annotations", 2, image_id=5),
                (TRAIN2017, "annotations[2]", "image_id 5 is none"),
            ),
            "image without caption": (
                lambda root: write_json(root / TRAIN2017, without_captions(root / TRAIN2017, 14)),
                Said((Path(TRAIN2017).name, "1 picture(s) left out, without a caption: 000000000014.jpg")),
            ),
            "not UTF-8": (latin(TRAIN2017, 1, "süß", b"s\xfc\xdf"), (f"{TRAIN2017}, line 1", "not UTF-8")),
            "path outside": (
                entry(TRAIN2017, "images", 2, file_name="../a.jpg"),
                (TRAIN2017, "images[2]", "'../a.jpg'"),
            ),
            "empty file": (emptied(TRAIN2017), (TRAIN2017, "no JSON, or damaged")),
            "truncated file": (cut(TRAIN2017), (TRAIN2017, "no JSON, or damaged")),
        },
        renamed_entry(TRAIN2017, "images", "file_name"),
    ),
    "coco karpathy": Format(
        write_coco_karpathy,
        lambda root: coco(root, layout="karpathy"),
        karpathy_cells(KARPATHY, (KARPATHY, "no such file", "caption_datasets.zip"))
        | {"duplicate": (entry(KARPATHY, "images", 2, cocoid=1), (KARPATHY, "images[2]", "duplicate of images[1]"))},
        renamed_entry(KARPATHY, "images", "filepath"),
    ),
    "flickr karpathy": Format(
        lambda root: write_flickr_karpathy(root, "flickr8k", "Images"),
        flickr8k,
        karpathy_cells("dataset_flickr8k.json", ("no captions; looked for", "dataset_flickr8k.json", "Images/"))
        | {
            "duplicate": (
                entry("dataset_flickr8k.json", "images", 2, filename="101_ab1.jpg"),
                ("dataset_flickr8k.json", "images[2]", "101_ab1.jpg is a duplicate of images[1]"),
            )
        },
        renamed_entry("dataset_flickr8k.json", "images", "filename"),
    ),
    "flickr8k original": Format(
        write_flickr8k_original,
        flickr8k,
        {
            "missing file": (gone("Flickr_8k.devImages.txt"), ("Flickr_8k.devImages.txt: no such file", "jbrownlee")),
            "wrong column": (line(TOKEN, 3, "a.jpg#0 x"), (f"{TOKEN}, line 3", "a tab and the caption")),
            "duplicate": (
                line(TOKEN, 3, lambda text: text.replace("#2", "#1")),
                (f"{TOKEN}, line 3", "100_ab0.jpg#1 is a duplicate"),
            ),
            "caption without image": (
                line("Flickr_8k.trainImages.txt", 1, ""),
                Said((TOKEN, "3 picture(s) left out, in none of the split lists: 100_ab0.jpg")),
            ),
            "image without caption": (
                line("Flickr_8k.trainImages.txt", 25, "bare.jpg"),
                Said(("1 picture(s) left out, in a split list, but without a caption: bare.jpg",)),
            ),
            "not UTF-8": (latin(TOKEN, 1), (f"{TOKEN}, line 1", "not UTF-8")),
            "path outside": (line(TOKEN, 3, "../a.jpg#0\tx"), (f"{TOKEN}, line 3", "'../a.jpg' is no file name")),
            "empty file": (emptied(TOKEN), (TOKEN, "holds no captions")),
            "truncated file": (
                lambda root: line(TOKEN, 170, "133_ab33.jpg#")(root),
                (f"{TOKEN}, line 170", "expected"),
            ),
        },
        renamed_line(TOKEN, "#"),
    ),
    "flickr8k kaggle": Format(
        write_flickr8k_kaggle,
        flickr8k,
        {
            "missing file": (gone(KAGGLE), ("no captions; looked for", KAGGLE, "adityajn105")),
            "wrong column": (line(KAGGLE, 1, "picture,text"), (f"{KAGGLE}, line 1", "image,caption is expected")),
            "caption without image": (line(KAGGLE, 3, ",a cat"), (f"{KAGGLE}, line 3", "'' is no file name")),
            "image without caption": (line(KAGGLE, 3, "100_ab0.jpg,"), (f"{KAGGLE}, line 3", "a caption is empty")),
            "not UTF-8": (latin(KAGGLE, 2), (f"{KAGGLE}, line 2", "not UTF-8")),
            "path outside": (line(KAGGLE, 3, "../a.jpg,x"), (f"{KAGGLE}, line 3", "'../a.jpg' is no file name")),
            "empty file": (emptied(KAGGLE), (KAGGLE, "holds no captions")),
            "truncated file": (line(KAGGLE, 161, "131_ab31.jpg"), (f"{KAGGLE}, line 161", "a caption is empty")),
        },
        renamed_line(KAGGLE, ","),
    ),
    "flickr30k original": Format(
        write_flickr30k_original,
        flickr30k,
        {
            "missing file": (gone(TOKEN30), ("no captions; looked for", TOKEN30, "DenotationGraph")),
            "wrong column": (line(TOKEN30, 3, "a.jpg#0 x"), (f"{TOKEN30}, line 3", "a tab and the caption")),
            "duplicate": (
                line(TOKEN30, 3, lambda text: text.replace("#2", "#1")),
                (f"{TOKEN30}, line 3", "100.jpg#1 is a duplicate"),
            ),
            "caption without image": (line(TOKEN30, 3, "#0\ta cat"), (f"{TOKEN30}, line 3", "'' is no file name")),
            "image without caption": (line(TOKEN30, 3, "100.jpg#2\t"), (f"{TOKEN30}, line 3", "a caption is empty")),
            "not UTF-8": (latin(TOKEN30, 1), (f"{TOKEN30}, line 1", "not UTF-8")),
            "path outside": (line(TOKEN30, 3, "../a.jpg#0\tx"), (f"{TOKEN30}, line 3", "'../a.jpg' is no file name")),
            "empty file": (emptied(TOKEN30), (TOKEN30, "holds no captions")),
            "truncated file": (line(TOKEN30, 310, "161.jpg#4"), (f"{TOKEN30}, line 310", "a tab and the caption")),
        },
        renamed_line(TOKEN30, "#"),
    ),
    "flickr30k kaggle": Format(
        write_flickr30k_kaggle,
        flickr30k,
        {
            "missing file": (gone(RESULTS), ("no captions; looked for", RESULTS, "hsankesara")),
            "wrong column": (line(RESULTS, 1, "a| b| c"), (f"{RESULTS}, line 1", "the header image_name|")),
            "duplicate": (
                line(RESULTS, 3, lambda text: text.replace("| 1|", "| 0|")),
                (f"{RESULTS}, line 3", "caption 0 of 100.jpg is a duplicate"),
            ),
            "caption without image": (line(RESULTS, 3, "| 0| a cat"), (f"{RESULTS}, line 3", "'' is no file name")),
            "image without caption": (line(RESULTS, 3, "100.jpg| 1|"), (f"{RESULTS}, line 3", "a caption is empty")),
            "not UTF-8": (latin(RESULTS, 2), (f"{RESULTS}, line 2", "not UTF-8")),
            "path outside": (line(RESULTS, 3, "../a.jpg| 0| x"), (f"{RESULTS}, line 3", "'../a.jpg' is no file name")),
            "empty file": (emptied(RESULTS), (f"{RESULTS}", "holds no captions")),
            "truncated file": (line(RESULTS, 373, "161.jp"), (f"{RESULTS}, line 373", "a caption is empty")),
        },
        renamed_line(RESULTS, "|"),
    ),
    "cars original": Format(
        test_cars.original,
        cars,
        {
            "missing file": (gone("devkit/cars_meta.mat"), ("devkit/cars_meta.mat is missing", "tanganke")),
            "wrong column": (cars_rows(1, **{"class": None}), ("cars_train_annos.mat", "lack class; found:")),
            "duplicate": (
                cars_rows(fname="00003.jpg"),
                ("cars_train_annos.mat, annotations[2]", "00003.jpg is a duplicate of annotations[0]"),
            ),
            "label out of range": (
                cars_rows(**{"class": 4}),
                ("cars_train_annos.mat, annotations[0]", "class 4 is out of range; 3 classes are numbered from 1"),
            ),
            "class without image": (
                more_cars("devkit/cars_meta.mat"),
                ("1 of 4 classes have no picture: Geo Metro Convertible 1993",),
            ),
            "path outside": (cars_rows(fname="../a.jpg"), ("cars_train_annos.mat, annotations[0]", "'../a.jpg'")),
            "empty file": (
                emptied("devkit/cars_train_annos.mat"),
                ("cars_train_annos.mat cannot be read as a MATLAB",),
            ),
            "truncated file": (
                cut("devkit/cars_train_annos.mat"),
                ("cars_train_annos.mat cannot be read as a MATLAB",),
            ),
        },
        rename_cars,
    ),
    "cars combined": Format(
        test_cars.combined,
        cars,
        {
            "missing file": (gone("cars_annos.mat"), ("no Stanford Cars found", "cars_annos.mat", "tanganke")),
            "wrong column": (
                lambda root: combined_rows(root, test=None),
                ("cars_annos.mat", "lack test; found: relative_im_path, class"),
            ),
            "duplicate": (
                lambda root: combined_rows(root, relative_im_path="car_ims/000001.jpg"),
                ("cars_annos.mat, annotations[2]", "car_ims/000001.jpg is a duplicate of annotations[0]"),
            ),
            "label out of range": (
                lambda root: combined_rows(root, **{"class": 0}),
                ("cars_annos.mat, annotations[2]", "class 0 is out of range"),
            ),
            "path outside": (
                lambda root: combined_rows(root, relative_im_path="/a.jpg"),
                ("cars_annos.mat, annotations[2]", "'/a.jpg' is no file name"),
            ),
            "empty file": (emptied("cars_annos.mat"), ("cars_annos.mat cannot be read as a MATLAB",)),
            "truncated file": (cut("cars_annos.mat"), ("cars_annos.mat cannot be read as a MATLAB",)),
        },
        rename_combined,
    ),
    "cars parquet": Format(
        test_cars.mirror,
        cars,
        {
            "missing file": (gone("data/train-00001-of-00002.parquet"), ("data has 1 of the 2 train-*.parquet files",)),
            "wrong column": (shard([0, 1], "kind"), (SHARD, "has no column label; found: image, kind")),
            "label out of range": (shard([0, 1, 3]), (f"{SHARD}, row 2 (counted from 0)", "class 3 is out of range")),
            "class without image": (
                all_shards([*test_cars.NAMES, "Geo Metro Convertible 1993"]),
                ("1 of 4 classes have no picture: Geo Metro",),
            ),
            "image without caption": (shard([0, None]), (f"{SHARD}, row 1 (counted from 0)", "class None is out of")),
            "empty file": (emptied(SHARD), (SHARD, "cannot be read as Parquet")),
            "truncated file": (cut(SHARD), (SHARD, "cannot be read as Parquet")),
        },
    ),
    "folder": Format(
        write_folder,
        folder,
        {
            "missing file": (both_gone("train", "val", "test"), ("no pictures found", "ROOT/{train,val,test}/CLASS")),
            "class without image": (
                lambda root: [(root / split / "eel").mkdir() for split in ("train", "val")],
                ("1 of 3 classes have no picture: eel",),
            ),
            "not UTF-8": (not_utf8("train", "cat"), ("train/cat", r"b'caf\xe9.jpg'", "not UTF-8; rename it")),
        },
    ),
    "cifar10": Format(
        write_cifar,
        cifar10,
        {
            "missing file": (gone("data_batch_3"), ("data_batch_3 is missing", "ROOT/cifar-10-batches-py")),
            "wrong column": (
                batch("data_batch_3", labels=None),
                ("data_batch_3 has no `labels`", "found: batch_label"),
            ),
            "label out of range": (
                batch("data_batch_3", labels=[0, 1, 3] + [0] * 9),
                ("data_batch_3, labels[2]", "class 3 is out of range; 3 classes are numbered from 0"),
            ),
            "class without image": (
                batch("batches.meta", label_names=[b"airplane", b"automobile", b"bird", b"cat"]),
                ("1 of 4 classes have no picture: cat",),
            ),
            "not UTF-8": (
                batch("batches.meta", label_names=[b"airplane", b"automobile", b"b\xefrd"]),
                ("batches.meta, label_names[2]", "not UTF-8"),
            ),
            "empty file": (emptied("data_batch_3"), ("data_batch_3 cannot be read as a pickle",)),
            "truncated file": (cut("data_batch_3"), ("data_batch_3 cannot be read as a pickle",)),
        },
    ),
    "caltech101": Format(
        write_caltech,
        caltech101,
        {
            "missing file": (gone("101_ObjectCategories"), ("no folder 101_ObjectCategories found",)),
            "class without image": (
                lambda root: (root / "101_ObjectCategories" / "okapi").mkdir(),
                ("1 of 6 classes have no picture: okapi",),
            ),
            "not UTF-8": (not_utf8("101_ObjectCategories", "Faces"), ("Faces", r"b'caf\xe9.jpg'", "not UTF-8")),
        },
    ),
    "imagenet folders": Format(
        write_imagenet,
        imagenet,
        {
            "missing file": (gone("val"), ("no folder val", "ROOT/val/n01440764")),
            "class without image": (
                lambda root: [(root / split / "n03888257").mkdir() for split in ("train", "val")],
                ("1 of 9 classes have no picture: n03888257",),
            ),
            "not UTF-8": (not_utf8("val", WNID), (f"val/{WNID}", r"b'caf\xe9.jpg'", "not UTF-8")),
        },
    ),
    "imagenet flat": Format(
        test_imagenet.flat,
        imagenet,
        {
            "missing file": (gone(TRUTH), (f"{TRUTH} is missing", "lie flat")),
            "wrong column": (
                lambda root: test_imagenet.meta(root / test_imagenet.DEVKIT / "meta.mat", drop="WNID"),
                ("meta.mat", "lack WNID; found: words"),
            ),
            "duplicate": (second_synset, ("meta.mat, synsets[2]", "n02113186 is a duplicate of synsets[0]")),
            "image without caption": (
                lambda root: test_imagenet.save(root / "val" / "ILSVRC2012_val_00000017.JPEG", 1),
                ("ILSVRC2012_val_00000017.JPEG is none of the 16 pictures",),
            ),
            "label out of range": (line(TRUTH, 3, "9"), (f"{TRUTH}, line 3", "class '9' is out of range; 8 classes")),
            "class without image": (
                lambda root: (root / TRUTH).write_text("1\n" * 16),
                ("7 of 8 classes have no picture: n01440764",),
            ),
            "not UTF-8": (line(TRUTH, 3, b"\xe9"), (f"{TRUTH}, line 3", "not UTF-8")),
            "empty file": (emptied(TRUTH), (f"{TRUTH}, line 1", "class '' is out of range")),
            "truncated file": (cut(TRUTH), ("ILSVRC2012_val_00000009.JPEG is none of the 8 pictures", TRUTH)),
        },
    ),
    **{f"pairs {kind}": pairs_format(kind) for kind in ("csv", "tsv", "jsonl", "parquet")},
}


UNLABELLED = {"label out of range": "no labels", "class without image": "no labels"}
BY_FOLDER = {
    "wrong column": "no columns",
    "duplicate": "a folder holds a name once",
    "caption without image": "no captions",
    "image without caption": "no captions",
    "label out of range": "a folder is the label",
    "path outside": "no list of paths",
    "empty file": "a picture: found when it is decoded",
    "truncated file": "a picture: found when it is decoded",
}
NO_CAPTIONS = {"caption without image": "no captions", "image without caption": "no captions"}
IN_MATLAB = {"not UTF-8": "MATLAB's texts are UTF-16"}
NOT_THERE: dict[str, dict[str, str]] = {
    "coco 2017": UNLABELLED,
    "coco karpathy": UNLABELLED | {"caption without image": "captions stand inside their picture"},
    "flickr karpathy": UNLABELLED | {"caption without image": "captions stand inside their picture"},
    "flickr8k original": UNLABELLED,
    "flickr8k kaggle": UNLABELLED | {"duplicate": "captions have no number"},
    "flickr30k original": UNLABELLED,
    "flickr30k kaggle": UNLABELLED,
    "cars original": NO_CAPTIONS | IN_MATLAB,
    "cars combined": NO_CAPTIONS | IN_MATLAB | {"class without image": "as in the original layout"},
    "cars parquet": {
        "duplicate": "pictures have no names",
        "caption without image": "no captions",
        "not UTF-8": "Parquet's texts are UTF-8",
        "path outside": "pictures are in the file",
    },
    "folder": BY_FOLDER,
    "cifar10": NO_CAPTIONS | {"duplicate": "pictures have no names", "path outside": "pictures are in the file"},
    "caltech101": BY_FOLDER,
    "imagenet folders": BY_FOLDER,
    "imagenet flat": {"caption without image": "found when pictures are decoded", "path outside": "no list of paths"},
    **{
        f"pairs {kind}": {"class without image": "classes are the labels that occur"}
        for kind in ("csv", "tsv", "jsonl")
    },
    "pairs parquet": {"class without image": "classes are the labels that occur", "not UTF-8": "Parquet's are"},
}


def test_the_table_has_every_cell() -> None:
    assert FORMATS.keys() == NOT_THERE.keys()
    for name, format in FORMATS.items():
        assert not format.cells.keys() & NOT_THERE[name].keys()
        assert set(MISTAKES) <= format.cells.keys() | NOT_THERE[name].keys(), name


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture
def write(tmp_path: Path, layouts: Path) -> Callable[[str], Path]:
    """Copies a layout, written when it is first asked for, and returns its root."""

    def copy(name: str) -> Path:
        if not (layouts / name).is_dir():
            (layouts / name).mkdir()
            FORMATS[name].write(layouts / name)
        return Path(shutil.copytree(layouts / name, tmp_path / "root"))

    return copy


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_mistake_each_layout_is_read(write: Callable[[str], Path], name: str) -> None:
    root = write(name)
    records = FORMATS[name].read(root)
    assert len(records) >= 12
    assert not any("left out, without" in note or "twice" in note for note in records.notes)


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, cell) for name, format in FORMATS.items() for cell in format.cells]
)
def test_each_mistake_is_one_message_that_names_the_place(
    write: Callable[[str], Path], name: str, mistake: str
) -> None:
    format = FORMATS[name]
    make, words = format.cells[mistake]
    root = write(name)
    make(root)
    if isinstance(words, Said):
        before = format.read(root)
        assert any(all(word in note for word in words.words) for note in before.notes), before.notes
        return
    with pytest.raises(UserError) as caught:
        format.read(root)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message.replace(str(root), "ROOT")) < 1500


OUTSIDE = {
    "above": "../a.jpg",
    "above from below": "a/../../b.jpg",
    "absolute": "/etc/passwd",
    "above, with backslashes": "..\\a.jpg",
    "absolute, with a backslash": "\\a.jpg",
    "a share": "\\\\server\\a.jpg",
    "a drive": "C:\\a.jpg",
    "a drive's folder": "d:a.jpg",
    "NUL": "a\0.jpg",
    "nothing": "",
    "blanks": "   ",
    "the folder": ".",
    "half a surrogate pair": "a\ud83d.jpg",
}
NAMED = [name for name, format in FORMATS.items() if format.rename is not None]


def can_be_written(name: str, outside: str) -> bool:
    """In this format: texts of MATLAB lose blanks and NULs, and only JSON spells half a surrogate pair."""
    if outside == "half a surrogate pair":
        return "coco" in name or "karpathy" in name or "jsonl" in name
    if outside == "nothing":
        return name != "coco karpathy"  # there it means pictures without a folder of their own
    return not (name.startswith("cars") and outside in ("blanks", "NUL"))


@pytest.mark.parametrize(("name", "outside"), [(a, b) for a in NAMED for b in OUTSIDE if can_be_written(a, b)])
def test_a_name_that_leads_outside_is_refused_in_every_list(
    write: Callable[[str], Path], name: str, outside: str
) -> None:
    format, new = FORMATS[name], OUTSIDE[outside]
    assert format.rename is not None
    root = write(name)
    words = format.rename(root, new)
    with pytest.raises(UserError) as caught:
        format.read(root)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("name", [name for name in NAMED if "karpathy" not in name])
@pytest.mark.parametrize("spelling", ["./sub/a.jpg", "sub//a.jpg", "sub\\a.jpg", "sub/./a.jpg"])
def test_other_spellings_of_a_path_are_the_same_name(write: Callable[[str], Path], name: str, spelling: str) -> None:
    format = FORMATS[name]
    assert format.rename is not None
    root = write(name)
    if name == "flickr8k original":
        with (root / "Flickr_8k.trainImages.txt").open("a") as stream:
            stream.write("sub/a.jpg\n")
    format.rename(root, spelling)
    records = format.read(root)
    found = [records.image_name(row) for row in range(len(records))]
    assert [one for one in found if one.endswith("sub/a.jpg")] != []


def test_links_inside_the_root_may_lead_outside(tmp_path: Path) -> None:
    test_class_folder.fill(tmp_path / "elsewhere" / "cat", 2)
    test_class_folder.fill(tmp_path / "root" / "dog", 3)
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "root" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dog" / "more" / "round").symlink_to(tmp_path / "root" / "dog")
    (tmp_path / "root" / "dog" / "itself").symlink_to("itself")
    (tmp_path / "root" / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "cat" / "0.png")
    records = folder(tmp_path / "root")
    assert records.class_names == ("cat", "dog")
    assert np.bincount(records.labels).tolist() == [2, 6]
    assert all(records.reader(records.image_name(row)).size == (4, 4) for row in range(8))
