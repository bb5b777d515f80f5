"""ImageNet's 1,000 classes (ILSVRC2012): the validation pictures, and train where it is there.

Run: python -m clipkit.evaluate model=open_clip:ViT-B-32/laion2b_s34b_b79k data=imagenet data.root=/path/to/imagenet

    val/WNID/*.JPEG                              class folders, such as n01440764; train/WNID/*.JPEG beside them
    val/ILSVRC2012_val_00000001.JPEG …           flat, with ILSVRC2012_devkit_t12/data/: meta.mat and
                                                 ILSVRC2012_validation_ground_truth.txt
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_classes, check_root, read_structs, shown
from clipkit.data.records import Record, Records
from clipkit.data.sources.annotations import read_text
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError

__all__ = ["imagenet"]

DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
WNID = re.compile(r"n\d{8}")
FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
LAYOUTS = (
    "expected ROOT/val/n01440764/*.JPEG (one folder a class), or ROOT/val/ILSVRC2012_val_00000001.JPEG … with "
    f"ROOT/{DEVKIT}/meta.mat and {TRUTH}; and optionally ROOT/train/n01440764/*.JPEG"
)
READABLE = {"n02012849": "crane bird", "n03126707": "construction crane"}  # WordNet calls both "crane", and only that
Found = tuple[str, str, str]  # picture, wnid, split


def imagenet(root: str | Path, *, split_seed: int = 1) -> Records:
    """The official validation pictures as `test`, as the literature does; classes in the order of their wnids.

    With train/, a tenth of it, by class and seed, serves as validation. Both are said in `notes`. A class is named by
    the first of its words in meta.mat, or in timm's list where there is no devkit; by all of them where two would be
    the same.

    A flat picture that is missing is found when pictures are decoded.

    Raises:
        UserError: a folder or file is missing or damaged, a label is out of range (with its line), a class has no
            picture in any split.
    """
    root, inputs = check_root(root, LAYOUTS), Inputs()
    if not inputs.is_dir(root / "val"):
        raise UserError(f"data.root={root}: no folder val; {LAYOUTS}")
    meta = root / DEVKIT / "meta.mat"
    synsets = _synsets(meta) if inputs.is_file(meta) else []
    flat = [name for name in inputs.pictures(root / "val", root, deep=False) if name.lower().endswith(".jpeg")]
    if flat:
        wnids = {wnid for wnid, _ in synsets}
        found = _flat(root, flat, [wnid for wnid, _ in synsets], inputs)
    else:
        wnids, found = _class_folders(root, "val", "test", inputs)
    notes = ["the official validation pictures are the test split"]
    if inputs.is_dir(root / "train"):
        more, train = _class_folders(root, "train", "train", inputs)
        wnids, found = wnids | more, found + train
        notes.append(f"a tenth of train, by class, serves as validation (data.split_seed={split_seed})")
    order = {wnid: number for number, wnid in enumerate(sorted(wnids))}
    records = [Record(image=image, label=order[wnid], split=split) for image, wnid, split in found]
    check_classes(root, list(order), records)
    names = _class_names(list(order), dict(synsets) if synsets else _timm_words(root, order))
    records = carve_validation(records, seed=split_seed)
    notes += check_classes(root, names, records)
    table = Records.from_records(records, reader=FolderReader(root), class_names=names, name="imagenet")
    return table.noting(notes).reading(inputs)


def _synsets(meta: Path) -> list[tuple[str, str]]:
    """(wnid, words) of the classes, in the order of the numbers that the ground truth uses: not that of wnids."""
    rows = read_structs(meta, "synsets", ("ILSVRC2012_ID", "WNID", "words", "num_children"))
    first: dict[str, int] = {}
    for place, (number, wnid, _, _) in enumerate(rows):
        if not isinstance(number, int | np.integer) or not isinstance(wnid, str):
            raise UserError(f"{meta}, synsets[{place}]: ILSVRC2012_ID {shown(number)} or WNID {shown(wnid)} is wrong")
        if first.setdefault(wnid, place) != place:
            raise UserError(f"{meta}, synsets[{place}]: {wnid} is a duplicate of synsets[{first[wnid]}]")
    leaves = sorted((int(number), wnid, str(words)) for number, wnid, words, children in rows if children == 0)
    if [number for number, _, _ in leaves] != list(range(1, len(leaves) + 1)):
        raise UserError(f"{meta}: ILSVRC2012_ID of the classes (num_children = 0) must be 1 … {len(leaves)}")
    return [(wnid, words) for _, wnid, words in leaves]


def _flat(root: Path, pictures: Sequence[str], wnids: Sequence[str], inputs: Inputs) -> list[Found]:
    """Line n of the ground truth is the class of picture n. A picture that is missing is found when all are decoded."""
    truth = root / DEVKIT / TRUTH
    for file in (root / DEVKIT / "meta.mat", truth):
        if not inputs.is_file(file):
            raise UserError(f"{file} is missing: the pictures in {root / 'val'} lie flat, and need it; {LAYOUTS}")
    sorted_in = [folder.name for folder in inputs.folders(root / "val") if WNID.fullmatch(folder.name)]
    if sorted_in:
        raise UserError(
            f"{root / 'val'} holds pictures ({Path(pictures[0]).name} …) beside class folders ({sorted_in[0]} …): "
            "finish sorting them into the folders, or unpack them again"
        )
    lines = [line.strip() for line in read_text(truth).rstrip().split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.isdecimal() or not 1 <= int(line) <= len(wnids):
            raise UserError(
                f"{truth}, line {number}: class {shown(line)} is out of range; {len(wnids)} classes are numbered from 1"
            )
    numbers: dict[int, str] = {}
    for picture in pictures:
        match = FLAT.fullmatch(Path(picture).name)
        if match is None or not 1 <= int(match[1]) <= len(lines):
            raise UserError(f"{root / picture} is none of the {len(lines)} pictures that {truth} has a class for")
        if numbers.setdefault(int(match[1]), picture) != picture:
            raise UserError(f"{root / picture} is a duplicate of {numbers[int(match[1])]}")
    return [
        (numbers.get(number, f"val/ILSVRC2012_val_{number:08d}.JPEG"), wnids[int(line) - 1], "test")
        for number, line in enumerate(lines, 1)
    ]


def _class_folders(root: Path, name: str, split: str, inputs: Inputs) -> tuple[set[str], list[Found]]:
    folders = inputs.folders(root / name)
    odd = [folder.name for folder in folders if WNID.fullmatch(folder.name) is None]
    if odd or not folders:
        what = f"has folders that are no wnids: {', '.join(odd[:5])}" if odd else "holds no class folders"
        raise UserError(f"{root / name} {what}; {LAYOUTS}")
    found = [(picture, folder.name, split) for folder in folders for picture in inputs.pictures(folder, root)]
    return {folder.name for folder in folders}, found


def _timm_words(root: Path, wnids: Sequence[str] | dict[str, int]) -> dict[str, str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    try:
        return {wnid: info.label_name_to_description(wnid) for wnid in wnids}
    except KeyError as error:
        raise UserError(f"data.root={root}: the class folder {error} is no wnid of ImageNet") from None


def _class_names(wnids: Sequence[str], words: dict[str, str]) -> list[str]:
    unknown = [wnid for wnid in wnids if wnid not in words]
    if unknown:
        raise UserError(f"meta.mat does not name the class folder(s) {', '.join(unknown[:5])}")
    first = {wnid: READABLE.get(wnid, words[wnid].split(",")[0].strip()) for wnid in wnids}
    count = Counter(name.lower() for name in first.values())
    return [first[wnid] if count[first[wnid].lower()] == 1 else words[wnid] for wnid in wnids]
