"""COCO captions: the 2017 files, or Karpathy's split of the 2014 pictures (the one that retrieval papers report).

Run: python -m clipkit.train data=coco data.root=/path/to/coco
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_name, check_root, shown
from clipkit.data.records import Record, Records
from clipkit.data.sources.annotations import clean_caption, find_folder, left_out, no_folder, read_json
from clipkit.data.sources.karpathy import SHARE, SOURCE, read_karpathy
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError

__all__ = ["coco"]

CHOICES = ("auto", "2017", "karpathy")
KARPATHY = ("dataset_coco.json", "annotations/dataset_coco.json")
YEARS = {"train": "train2017", "test": "val2017"}  # the folders of layout 2017
HELP = (
    "expected ROOT/annotations/captions_{train,val}2017.json with the pictures in ROOT/{train,val}2017/ or "
    "ROOT/images/{train,val}2017/, or dataset_coco.json in ROOT/ or ROOT/annotations/ with {train,val}2014/ in the "
    f"same places. Pictures and captions: https://cocodataset.org/#download; dataset_coco.json: {SOURCE}"
)


def coco(root: str | Path, *, layout: str | int = "auto", split_seed: int = 1) -> Records:
    """The captioned pictures below `root`; each is a group of its own.

    Pictures without a caption are left out, and so is a part that was not downloaded: its captions' file or its folder
    of pictures. Both are said in `notes`. A single picture that is missing is found when pictures are decoded.

    Args:
        root: the folder with the annotations and the pictures' folders.
        layout: "2017": train2017, a twentieth of it by seed for validation (COCO publishes no captions of its test
            pictures), and val2017 as test. "karpathy": dataset_coco.json with its splits. "auto": karpathy if there is
            such a file, and said in `notes`.
        split_seed: decides which pictures are validation in layout 2017, or in a dataset_coco.json that has none.

    Raises:
        UserError: nothing is there, or the first wrong entry, by file and index.
    """
    if str(layout) not in CHOICES:
        raise UserError(f"data.layout={layout}: choose from {', '.join(CHOICES)}")
    root, inputs = check_root(root, HELP), Inputs()
    files = [] if str(layout) == "2017" else [root / name for name in KARPATHY if inputs.is_file(root / name)]
    if layout == "karpathy" and not files:
        raise UserError(f"{' and '.join(str(root / name) for name in KARPATHY)}: no such file; {HELP}")
    if files:
        chosen = f"{files[0].name} was found: Karpathy's splits are used (data.layout=2017 would ignore them)"
        notes = [chosen] if layout == "auto" else []
        looked: list[str] = []

        def folder(path: str, name: str) -> str | None:
            looked.extend(_candidates(path))
            return find_folder(root, _candidates(path), name, inputs)

        records, more = read_karpathy(files[0], folder, split_seed=split_seed)
        if not records:
            raise UserError(f"data.root={root}: {no_folder(root, looked)}; {HELP}")
    else:
        records, notes, more = *_layout_2017(root, inputs, split_seed), []
    table = Records.from_records(records, reader=FolderReader(root), name="coco")
    return table.noting([*notes, *more]).reading(inputs)


class _Absent(Exception):
    """A part of the data set that is not there: what was looked for."""


def _layout_2017(root: Path, inputs: Inputs, split_seed: int) -> tuple[list[Record], list[str]]:
    records: list[Record] = []
    notes: list[str] = []
    absent: list[str] = []
    for split, year in YEARS.items():
        try:
            found, more = _read_2017(root, year, split, inputs)
        except _Absent as error:
            absent.append(str(error))
            more = [f"{error}, so {'nothing can be trained' if split == 'train' else 'there is no test split'}"]
        else:
            records += found
        notes += more
    if not records:
        raise UserError(f"{absent[0]}; {HELP}")
    share = f"{SHARE:.0%} of train2017 serve as validation (data.split_seed={split_seed})"
    said = {"train": share, "test": "val2017 as test"}
    splits = {record.split for record in records}
    notes.append(f"layout 2017: {', '.join(said[split] for split in YEARS if split in splits)}")
    return carve_validation(records, seed=split_seed, share=SHARE), notes


def _read_2017(root: Path, year: str, split: str, inputs: Inputs) -> tuple[list[Record], list[str]]:
    """The records of one captions file, and notes about pictures left out."""
    file = root / "annotations" / f"captions_{year}.json"
    if not inputs.is_file(file):
        raise _Absent(f"{file}: no such file")
    images, annotations = read_json(file, slim=_slim, lists=["images", "annotations"])
    names = _names(images, file)
    captions: dict[int | str, list[str]] = {identity: [] for identity in names}
    for number, entry in enumerate(annotations):
        if not isinstance(entry, tuple):
            raise UserError(f"{file}, annotations[{number}]: an object with image_id and caption is expected")
        image, text = entry
        of_image = captions.get(image) if isinstance(image, (int, str)) else None
        if of_image is None:
            raise UserError(f"{file}, annotations[{number}]: image_id {shown(image)} is none of the file's images")
        of_image.append(clean_caption(text, file, "annotations[{}]", number))
    bare = [names[identity] for identity, texts in captions.items() if not texts]
    if len(bare) == len(names):
        raise UserError(f"{file}: no picture has a caption")
    folder = find_folder(root, _candidates(year), next(iter(names.values())), inputs)
    if folder is None:
        raise _Absent(f"data.root={root}: {no_folder(root, _candidates(year))}")
    records = [
        Record(image=f"{folder}/{name}", captions=tuple(captions[identity]), split=split)
        for identity, name in names.items()
        if captions[identity]
    ]
    return records, left_out(bare, file, "without a caption")


def _names(images: Sequence[Any], file: Path) -> dict[int | str, str]:
    """File names by image id, both unique."""
    names: dict[int | str, str] = {}
    files: set[str] = set()
    for number, entry in enumerate(images):
        if not isinstance(entry, tuple) or not isinstance(entry[0], int | str):
            raise UserError(f"{file}, images[{number}]: an object with id and file_name is expected")
        identity, name = entry[0], check_name(entry[1], file, "images[{}]", number)
        if identity in names or name in files:
            raise UserError(f"{file}, images[{number}]: a duplicate of id {identity} or file_name {name}")
        names[identity] = name
        files.add(name)
    return names


def _slim(entry: dict[str, Any]) -> Any:
    """Of a picture its id and file name, of a caption its picture's id and its text."""
    if "file_name" in entry:
        return entry.get("id"), entry["file_name"]
    return (entry.get("image_id"), entry["caption"]) if "caption" in entry else entry


def _candidates(folder: str) -> list[str]:
    return [folder, f"images/{folder}"]
