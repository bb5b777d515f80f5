"""Caltech-101 (Fei-Fei et al., 2004): ROOT/101_ObjectCategories/CLASS/*.jpg, also below ROOT/caltech-101/.

Run: python -m clipkit.train data=caltech101 data.root=/path/to/caltech-101
"""

from pathlib import Path

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_classes, check_root
from clipkit.data.records import Record, Records
from clipkit.data.splits import assign_splits
from clipkit.errors import UserError

__all__ = ["caltech101"]

FOLDER = "101_ObjectCategories"
DROPPED = "BACKGROUND_Google"  # no class of the task: pictures of anything
LAYOUT = f"expected ROOT/{FOLDER}/CLASS/*.jpg or ROOT/caltech-101/{FOLDER}/CLASS/*.jpg"
READABLE = {  # mostly as the CLIP paper words them
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
}


def caltech101(root: str | Path, *, split_seed: int = 1) -> Records:
    """The pictures of all classes but the background, 70/10/20 by class and seed: there are no official splits.

    Raises:
        UserError: the folder is missing, or a class in it has no picture.
    """
    root, inputs = check_root(root, LAYOUT), Inputs()
    base = inputs.first([root / FOLDER, root / "caltech-101" / FOLDER, root / "caltech101" / FOLDER])
    base = root if base is None and root.name == FOLDER else base
    if base is None:
        packed = inputs.first([root / f"{FOLDER}.tar.gz", root / "caltech-101" / f"{FOLDER}.tar.gz"])
        unpack = f" ({packed} is still packed)" if packed is not None else ""
        raise UserError(f"data.root={root}: no folder {FOLDER} found{unpack}; {LAYOUT}")
    folders = [folder for folder in inputs.folders(base) if folder.name != DROPPED]
    if not folders:
        raise UserError(f"{base} holds no class folders; {LAYOUT}")
    records = [
        Record(image=picture, label=label)
        for label, folder in enumerate(folders)
        for picture in inputs.pictures(folder, root)
    ]
    check_classes(base, [folder.name for folder in folders], records)
    names = [READABLE.get(folder.name, folder.name.replace("_", " ")) for folder in folders]
    records = assign_splits(records, seed=split_seed)
    note = f"no official splits: pictures were divided 70/10/20 by class (data.split_seed={split_seed})"
    notes = [note, *check_classes(base, names, records)]
    table = Records.from_records(records, reader=FolderReader(root), class_names=names, name="caltech101")
    return table.noting(notes).reading(inputs)
