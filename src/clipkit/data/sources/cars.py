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

import numpy as np

from clipkit.data.images import FolderReader, ImageReader
from clipkit.data.listing import first_that_exists, inside, read_mat, read_structs, refuse_empty_classes
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
Listing = tuple[list[Record], list[str]]  # records, class names


def cars(root: str | Path, *, split_seed: int = 1, year_first: bool = True) -> Records:
    """The pictures of any layout, under their official splits.

    Validation is a tenth of train, by class and seed. Where the official test pictures have no labels, train is divided
    70/10/20 instead. Both are said in `notes`, and both are the same in all copies that number their pictures alike.

    Args:
        root: the folder that holds one of the layouts.
        split_seed: of the splits that are ours.
        year_first: "Audi S5 Coupe 2012" becomes "2012 Audi S5 Coupe".

    Raises:
        UserError: a file is missing or damaged, a label is out of range, a class has no picture.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; {LAYOUTS}")
    reader: ImageReader = FolderReader(root)
    # TRAIN first: one of Kaggle's copies adds a cars_annos.mat whose pictures it does not have
    if (devkit := _find(root, *(f"{folder}{TRAIN}" for folder in ("devkit/", "car_devkit/devkit/", "")))) is not None:
        records, names = _original(root, devkit)
    elif (combined := _find(root, "cars_annos.mat", "devkit/cars_annos.mat")) is not None:
        records, names = _combined(root, combined)
    elif (shards := _shards(root, "train")) != []:
        reader = ParquetReader(root)
        records, names = _parquet(root, shards)
    else:
        raise UserError(f"data.root={root}: no Stanford Cars found; {LAYOUTS}")
    refuse_empty_classes(root, names, (record.label for record in records))
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
    return Records.from_records(records, reader=reader, class_names=names, name="cars").noting([note])


def _original(root: Path, train: Path) -> Listing:
    meta, base = train.with_name(META), root / "stanford_cars" if (root / "stanford_cars") in train.parents else root
    if not meta.is_file():
        raise UserError(f"{meta} is missing: it holds the class names; {LAYOUTS}")
    names = [str(name) for name in read_mat(meta, "class_names")]
    records = _annotated(root, train, _folder(base, "cars_train"), "train", names)
    test = first_that_exists([train.with_name(TEST), base / TEST])
    if test is not None:
        records += _annotated(root, test, _folder(base, "cars_test"), "test", names)
    return records, names


def _annotated(root: Path, file: Path, pictures: Path, split: str, names: Sequence[str]) -> list[Record]:
    folder = pictures.relative_to(root)
    return [
        Record(image=str(folder / inside(fname, file)), label=_label(file, label, 1, names), split=split)
        for fname, label in read_structs(file, "annotations", ("fname", "class"))
    ]


def _combined(root: Path, file: Path) -> Listing:
    base = file.parents[1] if file.parent.name == "devkit" else file.parent
    folder = _folder(base, "car_ims").parent.relative_to(root)
    names = [str(name) for name in read_mat(file, "class_names")]
    records = [
        Record(
            image=str(folder / inside(path, file)),
            label=_label(file, label, 1, names),
            split="test" if test else "train",
        )
        for path, label, test in read_structs(file, "annotations", ("relative_im_path", "class", "test"))
    ]
    return records, names


def _parquet(root: Path, train: list[Path]) -> Listing:
    names: list[str] = []
    records = []
    for split, shards in (("train", train), ("test", _shards(root, "test"))):
        for file in shards:
            labels, own = read_labels(file)
            if not own or (names and own != names):
                what = "names other classes than the files before it" if own else "does not name its classes"
                raise UserError(f"{file} {what}; the `huggingface` metadata of its schema should list all of them")
            names = own
            records += [
                Record(image=f"{file.relative_to(root)}#{row}", label=_label(file, label, 0, names), split=split)
                for row, label in enumerate(labels)
            ]
    return records, names


def _shards(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split, complete; [] if there are none."""
    found = sorted(root.glob(f"data/{split}-*.parquet")) or sorted(root.glob(f"{split}-*.parquet"))
    total = re.search(r"-of-(\d+)\.parquet$", found[0].name) if found else None
    if total is not None and len(found) != int(total[1]):
        raise UserError(f"{found[0].parent} has {len(found)} of the {int(total[1])} {split}-*.parquet files")
    return found


def _label(file: Path, value: object, first: int, names: Sequence[str]) -> int:
    """A class number that a file gives, counted from 0."""
    if not isinstance(value, int | np.integer) or not first <= value < first + len(names):
        raise UserError(f"{file}: class {value} is out of range; {len(names)} classes are numbered from {first}")
    return int(value) - first


def _find(root: Path, *places: str) -> Path | None:
    return first_that_exists(base / place for base in (root, root / "stanford_cars") for place in places)


def _folder(base: Path, name: str) -> Path:
    """A folder of pictures, which copies may have nested in one of the same name."""
    found = first_that_exists([base / name / name, base / name])
    if found is None:
        raise UserError(f"{base / name} is missing: it holds the pictures; {LAYOUTS}")
    return found


def _year_first(name: str) -> str:
    return re.sub(r"^(.+) (\d{4})$", r"\2 \1", name)
