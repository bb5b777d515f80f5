"""Stanford Cars (Krause et al., 2013): 16,185 pictures of 196 makes, models and years, in the layouts copies have.

Run: python -m clipkit.train data=cars data.root=/path/to/stanford_cars

    devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (or in devkit/),
    cars_train/*.jpg, cars_test/*.jpg            the original; ROOT/stanford_cars/… is read, too
    car_devkit/devkit/, cars_train/cars_train/, cars_test/cars_test/       the same, as Kaggle's copy nests it
    cars_annos.mat (or in devkit/), car_ims/*.jpg                          all pictures in one folder
    data/train-*.parquet, data/test-*.parquet                              the Hugging Face mirror
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.images import FolderReader, ImageReader
from clipkit.data.listing import Inputs, check_classes, check_name, check_root, read_mat, read_structs, shown
from clipkit.data.parquet import ParquetReader, read_labels
from clipkit.data.records import Record, Records
from clipkit.data.splits import assign_splits, carve_validation
from clipkit.errors import UserError

__all__ = ["cars"]

TRAIN, TEST, META = "cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"
LAYOUTS = f"""expected one of
  ROOT/devkit/{{{META},{TRAIN},{TEST}}} with ROOT/cars_train/*.jpg and ROOT/cars_test/*.jpg
  ROOT/car_devkit/devkit/… with ROOT/cars_train/cars_train/*.jpg and ROOT/cars_test/cars_test/*.jpg
  ROOT/cars_annos.mat with ROOT/car_ims/*.jpg
  ROOT/data/train-*.parquet and ROOT/data/test-*.parquet
The original download is gone; copies are on Kaggle ("stanford-cars-dataset") and on the Hugging Face hub \
("tanganke/stanford_cars")."""
PLACE = "annotations[{}]"  # counted from 0
Listing = tuple[list[Record], list[str]]  # records, class names


def cars(root: str | Path, *, split_seed: int = 1, year_first: bool = True) -> Records:
    """The pictures of any layout, under their official splits.

    Validation is a tenth of train, by class and seed. Where the official test pictures have no labels, train is divided
    70/10/20 instead. Both are said in `notes`, and both are the same in all copies that number their pictures alike.

    A picture file that is missing is found when pictures are decoded.

    Args:
        root: the folder that holds one of the layouts.
        split_seed: of the splits that are ours.
        year_first: "Audi S5 Coupe 2012" becomes "2012 Audi S5 Coupe".

    Raises:
        UserError: a file is missing or damaged, an entry is wrong (with its number), a class has no picture.
    """
    root, inputs = check_root(root, LAYOUTS), Inputs()
    reader: ImageReader = FolderReader(root)
    folders = [root, root / "stanford_cars"]
    # TRAIN first: one of Kaggle's copies adds a cars_annos.mat whose pictures it does not have
    devkits = [f"{folder}{TRAIN}" for folder in ("devkit/", "car_devkit/devkit/", "")]
    if (train := inputs.first(base / place for base in folders for place in devkits)) is not None:
        records, names = _original(root, train, inputs)
    elif both := inputs.first(base / p for base in folders for p in ("cars_annos.mat", "devkit/cars_annos.mat")):
        records, names = _combined(root, both, inputs)
    elif (shards := _shards(root, "train", inputs)) != []:
        reader = ParquetReader(root)
        records, names = _parquet(root, {"train": shards, "test": _shards(root, "test", inputs)})
    else:
        raise UserError(f"data.root={root}: no Stanford Cars found; {LAYOUTS}")
    check_classes(root, names, records)  # as the files spell them
    if any(record.split == "test" for record in records):
        records = carve_validation(records, seed=split_seed)
        note = f"a tenth of train, by class, serves as validation (data.split_seed={split_seed})"
    else:
        records = assign_splits(records, seed=split_seed)
        note = (
            f"no labels of the official test pictures ({TEST}, or test-*.parquet): train was divided 70/10/20 by class "
            f"(data.split_seed={split_seed}), and its numbers cannot be compared with published ones"
        )
    names = [_year_first(name) for name in names] if year_first else names
    notes = [note, *check_classes(root, names, records)]
    return Records.from_records(records, reader=reader, class_names=names, name="cars").noting(notes).reading(inputs)


def _original(root: Path, train: Path, inputs: Inputs) -> Listing:
    meta, base = train.with_name(META), root / "stanford_cars" if (root / "stanford_cars") in train.parents else root
    if not inputs.is_file(meta):
        raise UserError(f"{meta} is missing: it holds the class names; {LAYOUTS}")
    names = [str(name) for name in read_mat(meta, "class_names")]
    records = _annotated(root, train, _folder(base, "cars_train", inputs), "train", names)
    test = inputs.first([train.with_name(TEST), base / TEST])
    if test is not None:
        records += _annotated(root, test, _folder(base, "cars_test", inputs), "test", names)
    return records, names


def _annotated(root: Path, file: Path, pictures: Path, split: str, names: Sequence[str]) -> list[Record]:
    rows = read_structs(file, "annotations", ("fname", "class"))
    return _records(file, pictures.relative_to(root), [(*row, split) for row in rows], names)


def _combined(root: Path, file: Path, inputs: Inputs) -> Listing:
    base = file.parents[1] if file.parent.name == "devkit" else file.parent
    folder = _folder(base, "car_ims", inputs).parent.relative_to(root)
    names = [str(name) for name in read_mat(file, "class_names")]
    rows = read_structs(file, "annotations", ("relative_im_path", "class", "test"))
    divided = [(path, label, "test" if test else "train") for path, label, test in rows]
    return _records(file, folder, divided, names), names


def _records(file: Path, folder: Path, rows: Sequence[tuple[Any, Any, str]], names: Sequence[str]) -> list[Record]:
    """Of (picture, class number, split), in the order of the file."""
    first: dict[str, int] = {}
    records = []
    for number, (picture, label, split) in enumerate(rows):
        name = check_name(picture, file, PLACE, number)
        if first.setdefault(name, number) != number:
            raise UserError(f"{file}, {PLACE.format(number)}: {name} is a duplicate of annotations[{first[name]}]")
        where = f"{file}, {PLACE.format(number)}"
        records.append(Record(image=(folder / name).as_posix(), label=_label(where, label, 1, names), split=split))
    return records


def _parquet(root: Path, shards: dict[str, list[Path]]) -> Listing:
    names: list[str] = []
    records = []
    for split, file in ((split, file) for split, files in shards.items() for file in files):
        labels, own = read_labels(file)
        if not own or (names and own != names):
            what = "names other classes than the files before it" if own else "does not name its classes"
            raise UserError(f"{file} {what}; the `huggingface` metadata of its schema should list all of them")
        names = own
        for row, label in enumerate(labels):
            where = f"{file}, row {row} (counted from 0)"
            image = f"{file.relative_to(root).as_posix()}#{row}"
            records.append(Record(image=image, label=_label(where, label, 0, names), split=split))
    return records, names


def _shards(root: Path, split: str, inputs: Inputs) -> list[Path]:
    """The Parquet files of a split, complete; [] if there are none."""
    pattern = f"{split}-*.parquet"
    found = inputs.files(root / "data", pattern) or inputs.files(root, pattern)
    for file in found:
        inputs.add(file)
    total = re.search(r"-of-(\d+)\.parquet$", found[0].name) if found else None
    if total is not None and len(found) != int(total[1]):
        raise UserError(f"{found[0].parent} has {len(found)} of the {int(total[1])} {split}-*.parquet files")
    return found


def _label(where: str, value: object, first: int, names: Sequence[str]) -> int:
    """A class number that a file gives, counted from 0."""
    if not isinstance(value, int | np.integer) or not first <= value < first + len(names):
        raise UserError(
            f"{where}: class {shown(value)} is out of range; {len(names)} classes are numbered from {first}"
        )
    return int(value) - first


def _folder(base: Path, name: str, inputs: Inputs) -> Path:
    """A folder of pictures, which copies may have nested in one of the same name."""
    found = inputs.first([base / name / name, base / name])
    if found is None:
        raise UserError(f"{base / name} is missing: it holds the pictures; {LAYOUTS}")
    return found


def _year_first(name: str) -> str:
    return re.sub(r"^(.+) (\d{4})$", r"\2 \1", name)
