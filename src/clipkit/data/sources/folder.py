"""Class folders: ROOT/CLASS/*.jpg, or ROOT/{train,val,test}/CLASS/*.jpg.

Run: python -m clipkit.train data=folder data.root=/path/to/pictures
"""

from pathlib import Path

from clipkit.data.images import FolderReader
from clipkit.data.listing import pictures_below
from clipkit.data.records import SPLITS, Record, Records
from clipkit.data.splits import assign_splits, carve_validation
from clipkit.errors import UserError

__all__ = ["folder"]

LAYOUTS = "expected ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg"
ALIASES = {"valid": "val", "validation": "val"}


def folder(root: str | Path, *, split_seed: int = 1) -> Records:
    """The pictures below `root`; class names are folder names, with `_` read as a space.

    Without split folders: 70/10/20, stratified, by seed. Without validation: a tenth of train, and said in `notes`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; {LAYOUTS}")
    children = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    split_of = {child.name: ALIASES.get(child.name.lower(), child.name.lower()) for child in children}
    has_splits = bool(children) and all(split in SPLITS for split in split_of.values())
    found: list[tuple[str, str, Path]] = []  # split, class, file
    for child in children:
        classes = sorted(c for c in child.iterdir() if c.is_dir()) if has_splits else [child]
        split = split_of[child.name] if has_splits else "train"
        found += [(split, name.name, file) for name in classes for file in pictures_below(name)]
    if not found:
        raise UserError(f"data.root={root}: no pictures found; {LAYOUTS}")
    names = sorted({name for _, name, _ in found})
    index = {name: number for number, name in enumerate(names)}
    records = [Record(image=str(file.relative_to(root)), label=index[name], split=split) for split, name, file in found]
    notes = []
    splits = {record.split for record in records}
    if not has_splits:
        records = assign_splits(records, seed=split_seed)
        notes.append(f"no split folders: pictures were divided 70/10/20 by class (data.split_seed={split_seed})")
    elif "val" not in splits and "train" in splits:
        records = carve_validation(records, seed=split_seed)
        notes.append(f"no val folder: a tenth of train serves as validation (data.split_seed={split_seed})")
    table = Records.from_records(
        records, reader=FolderReader(root), class_names=[name.replace("_", " ") for name in names], name=root.name
    )
    return table.noting(notes)
