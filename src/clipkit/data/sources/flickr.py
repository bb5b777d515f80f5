"""Flickr8k and Flickr30k: pictures with five captions each, in the layouts they are passed around in.

Run: python -m clipkit.train data=flickr8k data.root=/path/to/flickr8k
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_root
from clipkit.data.records import SPLITS, Record, Records
from clipkit.data.sources.annotations import find_folder, left_out, no_folder, read_text
from clipkit.data.sources.flickr_captions import Rows, read_captions, read_results, read_token
from clipkit.data.sources.karpathy import SOURCE, read_karpathy, with_validation
from clipkit.data.splits import assign_splits
from clipkit.errors import UserError

__all__ = ["flickr8k", "flickr30k"]

LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
SUFFIX = re.compile(r"(.+\.jpe?g)\.\d+")  # Flickr8k.token.txt captions 2258277193_586949ec62.jpg.1, which no one has


@dataclass(frozen=True)
class Layouts:
    """What one data set is accepted as.

    Args:
        readers: of the captions' file, by its name, best first; None: Karpathy's, which has the splits too.
        places: folders below the root where that file may lie.
        folders: where the pictures may lie.
        shares: train : val : test, where no file divides the pictures.
        hint: all this in words, and where to get it.
        lists: files that name the pictures of each split, beside a token file.
    """

    readers: Mapping[str, Callable[[Path], Rows] | None]
    places: Sequence[str]
    folders: Sequence[str]
    shares: tuple[int, int, int]
    hint: str
    lists: Mapping[str, str] = field(default_factory=dict)


FLICKR8K = Layouts(
    readers={"dataset_flickr8k.json": None, "Flickr8k.token.txt": read_token, "captions.txt": read_captions},
    places=("", "Flickr8k_text"),
    folders=("Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"),
    shares=(6, 1, 1),
    hint="expected ROOT/captions.txt, ROOT/Flickr8k.token.txt with Flickr_8k.{train,dev,test}Images.txt, or "
    "ROOT/dataset_flickr8k.json, and the pictures in Images/, Flicker8k_Dataset/ or Flickr8k_Dataset/. "
    "captions.txt and Images/: https://www.kaggle.com/datasets/adityajn105/flickr8k; the original files: "
    f"https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k; dataset_flickr8k.json: {SOURCE}",
    lists=LISTS,
)
FLICKR30K = Layouts(
    readers={"dataset_flickr30k.json": None, "results_20130124.token": read_token, "results.csv": read_results},
    places=("", "flickr30k", "flickr30k_images"),
    folders=("flickr30k_images/flickr30k_images", "flickr30k_images", "flickr30k-images", "Images", "images"),
    shares=(29, 1, 1),
    hint="expected ROOT/dataset_flickr30k.json, ROOT/results_20130124.token or ROOT/results.csv, and the pictures in "
    "flickr30k_images/, flickr30k_images/flickr30k_images/, flickr30k-images/ or Images/. Pictures and results.csv: "
    "https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset; results_20130124.token and flickr30k-images/: on "
    f"request from https://shannon.cs.illinois.edu/DenotationGraph/; dataset_flickr30k.json: {SOURCE}",
)


def flickr8k(root: str | Path, *, split_seed: int = 1) -> Records:
    """The captioned pictures below `root`; each is a group of its own.

    Of several captions' files Karpathy's wins, then the original one, then Kaggle's. Splits are the published ones
    where their lists are there, else 6 : 1 : 1 by picture and seed. `notes` say what was decided, and which pictures
    were left out: those without a caption, and those that a split list does not name. A picture file that is missing
    is found when pictures are decoded.

    Raises:
        UserError: a file or folder is missing, or the first wrong entry, by file and line or index.
    """
    return _read(root, FLICKR8K, "flickr8k", split_seed)


def flickr30k(root: str | Path, *, split_seed: int = 1) -> Records:
    """As `flickr8k`: Karpathy's file and splits, else the original one or Kaggle's with 29 : 1 : 1 by picture."""
    return _read(root, FLICKR30K, "flickr30k", split_seed)


def _read(root: str | Path, layouts: Layouts, name: str, split_seed: int) -> Records:
    root, inputs = check_root(root, layouts.hint), Inputs()
    places = [
        (root / place / file, reader) for (file, reader), place in product(layouts.readers.items(), layouts.places)
    ]
    found = [(file, reader) for file, reader in places if inputs.is_file(file)]
    if not found:
        looked = ", ".join(str(file) for file, _ in places)
        raise UserError(f"data.root={root}: no captions; looked for {looked}; {layouts.hint}")
    file, reader = found[0]
    unused = ", ".join(str(other.relative_to(root)) for other, _ in found[1:])
    notes = [f"captions are those of {file.relative_to(root)}; {unused} is not used"] if unused else []

    def folder(path: str, picture: str) -> str:
        candidates = [Path(one, path).as_posix() for one in layouts.folders]
        place = find_folder(root, candidates, picture, inputs)
        if place is None:
            raise UserError(f"data.root={root}: {no_folder(root, candidates)}; {layouts.hint}")
        return place

    if reader is None:
        records, more = read_karpathy(file, folder, split_seed=split_seed)
    else:
        rows, more = reader(file)
        pictures = folder("", rows[0][0])
        captions, missing = _by_picture(rows, root / pictures, inputs)
        records = [Record(image=picture, captions=tuple(texts)) for picture, texts in captions.items()]
        more = [*more, *left_out(missing, file, "there is no such file")]
        lists = {split: file.parent / name for split, name in layouts.lists.items() if reader is read_token}
        if [path for path in lists.values() if inputs.is_file(path)]:
            records, decided = _by_lists(records, file, lists, layouts.hint)
            records, carved = with_validation(records, seed=split_seed)
            decided += carved
        else:
            records, decided = _by_seed(records, layouts.shares, split_seed)
        records = [replace(record, image=f"{pictures}/{record.image}") for record in records]
        more += decided
    if not records:
        raise UserError(f"{file}: no picture is left; {'; '.join(more)}")
    table = Records.from_records(records, reader=FolderReader(root), name=name)
    return table.noting([*notes, *more]).reading(inputs)


def _by_picture(
    rows: Sequence[tuple[str, str]], folder: Path, inputs: Inputs
) -> tuple[dict[str, list[str]], list[str]]:
    """Captions by picture, and the pictures named with a suffix (`a.jpg.1`) of which no file exists either way."""
    captions: dict[str, list[str]] = {}
    for picture, caption in rows:
        captions.setdefault(picture, []).append(caption)
    missing = []
    for picture in [name for name in captions if SUFFIX.fullmatch(name) and not inputs.is_file(folder / name)]:
        match = SUFFIX.fullmatch(picture)
        texts = captions.pop(picture)
        if match and inputs.is_file(folder / match[1]):
            captions.setdefault(match[1], []).extend(texts)
        else:
            missing.append(picture)
    return captions, missing


def _by_seed(records: Sequence[Record], parts: tuple[int, int, int], split_seed: int) -> tuple[list[Record], list[str]]:
    shares = [(split, part / sum(parts)) for split, part in zip(SPLITS, parts, strict=True)]
    ratio = " : ".join(str(part) for part in parts)
    note = f"no split files: pictures were divided {ratio} into train, val and test (data.split_seed={split_seed})"
    return assign_splits(records, seed=split_seed, shares=shares), [note]


def _by_lists(
    records: Sequence[Record], file: Path, lists: Mapping[str, Path], hint: str
) -> tuple[list[Record], list[str]]:
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for number, line in enumerate(read_text(path, hint).split("\n"), 1):
            name = line.strip()
            if name in split_of:
                raise UserError(f"{path}, line {number}: {name} is a duplicate, of {split_of[name]}")
            if name:
                split_of[name] = split
    unlisted = [record.image for record in records if record.image not in split_of]
    captioned = {record.image for record in records}
    bare = [name for name in split_of if name not in captioned]
    notes = left_out(unlisted, file, "in none of the split lists")
    notes += left_out(bare, file, "in a split list, but without a caption")
    return [replace(record, split=split_of[record.image]) for record in records if record.image in split_of], notes
