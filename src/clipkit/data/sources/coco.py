"""COCO captions: the 2017 files, or Karpathy's split of the 2014 pictures (the one that retrieval papers report).

Run: python -m clipkit.train data=coco data.root=/path/to/coco
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.data.sources.annotations import (
    check_name,
    check_root,
    clean_caption,
    find_folder,
    left_out,
    read_json,
)
from clipkit.data.sources.karpathy import SOURCE, read_karpathy
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError

__all__ = ["coco"]

CHOICES = ("auto", "2017", "karpathy")
KARPATHY = ("dataset_coco.json", "annotations/dataset_coco.json")
SHARE = 0.05  # of train2017, for validation
HELP = (
    "expected ROOT/annotations/captions_{train,val}2017.json with the pictures in ROOT/{train,val}2017/ or "
    "ROOT/images/{train,val}2017/, or dataset_coco.json in ROOT/ or ROOT/annotations/ with {train,val}2014/ in the "
    f"same places. Pictures and captions: https://cocodataset.org/#download; dataset_coco.json: {SOURCE}"
)


def coco(root: str | Path, *, layout: str | int = "auto", split_seed: int = 1) -> Records:
    """The captioned pictures below `root`; each is a group of its own.

    Args:
        root: the folder with the annotations and the pictures' folders.
        layout: "2017": train2017, a twentieth of it by seed for validation (COCO publishes no captions of its test
            pictures), and val2017 as test. "karpathy": dataset_coco.json with its splits. "auto": karpathy if there is
            such a file, and said in `notes`.
        split_seed: decides which pictures are validation in layout 2017.

    Raises:
        UserError: a file or folder is missing, or the first wrong entry, by file and index.
    """
    if str(layout) not in CHOICES:
        raise UserError(f"data.layout={layout}: choose from {', '.join(CHOICES)}")
    root = check_root(root, HELP)
    files = [root / name for name in KARPATHY if (root / name).is_file()]
    notes = []
    if layout == "auto" and files:
        notes.append(f"{files[0].name} was found: Karpathy's splits are used (data.layout=2017 would ignore them)")
    if layout == "karpathy" or (layout == "auto" and files):
        if not files:
            raise UserError(f"{' and '.join(str(root / name) for name in KARPATHY)}: no such file; {HELP}")
        records, more = read_karpathy(files[0], lambda path, name: _folder(root, path, name))
    else:
        train, more = _read_2017(root, "train")
        test, more_of_test = _read_2017(root, "test")
        records = carve_validation([*train, *test], seed=split_seed, share=SHARE)
        share = f"{SHARE:.0%} of train2017 serve as validation (data.split_seed={split_seed})"
        more = [*more, *more_of_test, f"layout 2017: {share}, val2017 as test"]
    return Records.from_records(records, reader=FolderReader(root), name="coco").noting([*notes, *more])


def _read_2017(root: Path, split: str) -> tuple[list[Record], list[str]]:
    """The records of one captions file, and notes about pictures left out."""
    year = "train2017" if split == "train" else "val2017"
    file = root / "annotations" / f"captions_{year}.json"
    images, annotations = read_json(file, HELP, slim=_slim, lists=["images", "annotations"])
    names = _names(images, file)
    captions: dict[int | str, list[str]] = {identity: [] for identity in names}
    for number, entry in enumerate(annotations):
        if not isinstance(entry, tuple):
            raise UserError(f"{file}, annotations[{number}]: an object with image_id and caption is expected")
        image, text = entry
        if not isinstance(image, int | str) or image not in captions:
            raise UserError(f"{file}, annotations[{number}]: image_id {image!r} is none of the file's images")
        captions[image].append(clean_caption(text, file, "annotations[{}]", number))
    bare = [names[identity] for identity, texts in captions.items() if not texts]
    if len(bare) == len(names):
        raise UserError(f"{file}: no picture has a caption")
    folder = _folder(root, year, next(iter(names.values())))
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


def _folder(root: Path, name: str, picture: str) -> str:
    return find_folder(root, [name, f"images/{name}"], picture, HELP)
