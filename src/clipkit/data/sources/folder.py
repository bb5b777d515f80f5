"""Class folders: ROOT/CLASS/*.jpg, or ROOT/{train,val,test}/CLASS/*.jpg.

Run: python -m clipkit.train data=folder data.root=/path/to/pictures
"""

from collections.abc import Sequence
from pathlib import Path

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_classes, check_root
from clipkit.data.records import SPLITS, Record, Records
from clipkit.data.splits import assign_splits, carve_validation
from clipkit.errors import UserError

__all__ = ["folder"]

LAYOUTS = "expected ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg"
ALIASES = {"valid": "val", "validation": "val"}
Found = tuple[str, str, str]  # split, class, picture


def folder(root: str | Path, *, split_seed: int = 1) -> Records:
    """The pictures below `root`; class names are folder names, with `_` read as a space.

    Without split folders: 70/10/20, stratified, by seed. Without validation: a tenth of train. `notes` say so, and name
    the classes that a split lacks, and pictures that lie beside the class folders, which are left out.

    Raises:
        UserError: there are no pictures, a class has none in any split, split folders stand beside class folders, or a
            file name is not UTF-8.
    """
    root, inputs = check_root(root, LAYOUTS), Inputs()
    children = inputs.folders(root)
    splits, notes = _split_folders(root, children, inputs)
    loose = inputs.pictures(root, root, deep=False)
    found: list[Found] = []
    names: set[str] = set()
    for child in children if not splits else [child for child in children if child.name in splits]:
        classes = inputs.folders(child) if splits else [child]
        loose += inputs.pictures(child, root, deep=False) if splits else []
        names |= {one.name for one in classes}
        split = splits.get(child.name, "train")
        found += [(split, one.name, picture) for one in classes for picture in inputs.pictures(one, root)]
    if not found:
        raise UserError(f"data.root={root}: no pictures found in class folders; {LAYOUTS}")
    index = {name: number for number, name in enumerate(sorted(names))}
    records = [Record(image=picture, label=index[name], split=split) for split, name, picture in found]
    check_classes(root, list(index), records)
    if loose:
        some = ", ".join(loose[:3]) + (" …" if len(loose) > 3 else "")
        notes.append(f"{len(loose)} picture(s) beside the class folders are left out: {some}")
    used = {record.split for record in records}
    if not splits:
        records = assign_splits(records, seed=split_seed)
        notes.append(f"no split folders: pictures were divided 70/10/20 by class (data.split_seed={split_seed})")
    elif "val" not in used and "train" in used:
        records = carve_validation(records, seed=split_seed)
        notes.append(f"no val folder: a tenth of train serves as validation (data.split_seed={split_seed})")
    readable = [name.replace("_", " ") for name in index]
    class_names = readable if len(set(readable)) == len(readable) else list(index)  # "a_b" beside "a b"
    notes += check_classes(root, class_names, records)
    table = Records.from_records(records, reader=FolderReader(root), class_names=class_names, name=root.name)
    return table.noting(notes).reading(inputs)


def _split_folders(root: Path, children: Sequence[Path], inputs: Inputs) -> tuple[dict[str, str], list[str]]:
    """The splits by folder name, {} if the folders are classes; and notes on what else there is.

    Two or more folders named like splits are splits; a single one beside others is a class: there are trains, too.
    """
    named = {child.name: ALIASES.get(child.name.lower(), child.name.lower()) for child in children}
    splits = {name: split for name, split in named.items() if split in SPLITS}
    others = [child for child in children if child.name not in splits]
    if not others or not splits:
        return splits, []
    full = [other.name for other in others if inputs.pictures(other, root)]
    if not full:
        return splits, [f"folders without a picture are left out: {', '.join(other.name for other in others)}"]
    if len(set(splits.values())) == 1:
        return {}, [f"the folder {next(iter(splits))} is read as a class, as the folders beside it are"]
    raise UserError(
        f"data.root={root}: split folders ({', '.join(splits)}) beside others with pictures "
        f"({', '.join(full[:5])}); {LAYOUTS}, and nothing between them: move the others away"
    )
