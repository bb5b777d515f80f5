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

from clipkit.data.images import FolderReader
from clipkit.data.listing import pictures_below, read_structs, refuse_empty_classes
from clipkit.data.records import Record, Records
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

    Raises:
        UserError: a folder or file is missing or damaged, a label is out of range, a class has no picture.
    """
    root = Path(root)
    if not (root / "val").is_dir():
        raise UserError(f"data.root={root}: no folder val; {LAYOUTS}")
    meta = root / DEVKIT / "meta.mat"
    synsets = _synsets(meta) if meta.is_file() else []
    flat = sorted(f for f in (root / "val").iterdir() if f.suffix.lower() == ".jpeg" and f.name[0] != ".")
    if flat:
        wnids = {wnid for wnid, _ in synsets}
        found = _flat(root, flat, [wnid for wnid, _ in synsets])
    else:
        wnids, found = _class_folders(root, "val", "test")
    notes = ["the official validation pictures are the test split"]
    if (root / "train").is_dir():
        more, train = _class_folders(root, "train", "train")
        wnids, found = wnids | more, found + train
        notes.append(f"a tenth of train, by class, serves as validation (data.split_seed={split_seed})")
    order = {wnid: number for number, wnid in enumerate(sorted(wnids))}
    refuse_empty_classes(root, list(order), {order[wnid] for _, wnid, _ in found})
    names = _class_names(list(order), dict(synsets) if synsets else _timm_words(root, order))
    records = [Record(image=image, label=order[wnid], split=split) for image, wnid, split in found]
    records = carve_validation(records, seed=split_seed)
    table = Records.from_records(records, reader=FolderReader(root), class_names=names, name="imagenet")
    return table.noting(notes)


def _synsets(meta: Path) -> list[tuple[str, str]]:
    """(wnid, words) of the classes, in the order of the numbers that the ground truth uses: not that of wnids."""
    rows = read_structs(meta, "synsets", ("ILSVRC2012_ID", "WNID", "words", "num_children"))
    leaves = sorted((int(number), str(wnid), str(words)) for number, wnid, words, children in rows if children == 0)
    if [number for number, _, _ in leaves] != list(range(1, len(leaves) + 1)):
        raise UserError(f"{meta}: ILSVRC2012_ID of the classes (num_children = 0) must be 1 … {len(leaves)}")
    return [(wnid, words) for _, wnid, words in leaves]


def _flat(root: Path, pictures: Sequence[Path], wnids: Sequence[str]) -> list[Found]:
    """Line n of the ground truth is the class of picture n. A picture that is missing is found when all are decoded."""
    truth = root / DEVKIT / TRUTH
    for file in (root / DEVKIT / "meta.mat", truth):
        if not file.is_file():
            raise UserError(f"{file} is missing: the pictures in {root / 'val'} lie flat, and need it; {LAYOUTS}")
    lines = truth.read_text(errors="replace").split()
    for line in lines:
        if not line.isdecimal() or not 1 <= int(line) <= len(wnids):
            raise UserError(f"{truth}: class {line!r} is out of range; {len(wnids)} classes are numbered from 1")
    numbers = {}
    for picture in pictures:
        match = FLAT.fullmatch(picture.name)
        if match is None or not 1 <= int(match[1]) <= len(lines):
            raise UserError(f"{picture} is none of the {len(lines)} pictures that {truth} has a class for")
        numbers[int(match[1])] = picture.name
    return [
        (f"val/{numbers.get(number, f'ILSVRC2012_val_{number:08d}.JPEG')}", wnids[int(line) - 1], "test")
        for number, line in enumerate(lines, 1)
    ]


def _class_folders(root: Path, name: str, split: str) -> tuple[set[str], list[Found]]:
    folders = sorted(f for f in (root / name).iterdir() if f.is_dir() and not f.name.startswith("."))
    odd = [folder.name for folder in folders if WNID.fullmatch(folder.name) is None]
    if odd or not folders:
        what = f"has folders that are no wnids: {', '.join(odd[:5])}" if odd else "holds no class folders"
        raise UserError(f"{root / name} {what}; {LAYOUTS}")
    found = [(str(file.relative_to(root)), folder.name, split) for folder in folders for file in pictures_below(folder)]
    empty = [folder.name for folder in folders if folder.name not in {wnid for _, wnid, _ in found}]
    if empty:
        raise UserError(
            f"{root / name}: {len(empty)} of {len(folders)} classes have no picture: {', '.join(empty[:10])}"
        )
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
