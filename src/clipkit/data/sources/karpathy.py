"""Karpathy's split files (`dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`): one format for all.

Source: https://cs.stanford.edu/people/karpathy/deepimagesent/ (arXiv 1412.2306). Used by `data=coco`, `data=flickr8k`
and `data=flickr30k`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipkit.data.listing import check_name, shown
from clipkit.data.records import Record
from clipkit.data.sources.annotations import clean_caption, left_out, read_json
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError

__all__ = ["SOURCE", "read_karpathy", "with_validation"]

SOURCE = "caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/"
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
PLACE = "images[{}]"
SHARE = 0.05  # of train, for validation


def read_karpathy(
    file: Path, folder: Callable[[str, str], str | None], *, split_seed: int
) -> tuple[list[Record], list[str]]:
    """The captioned pictures of a file `{"images": [{filename, filepath, split, sentences: [{raw}]}]}`.

    Args:
        file: in COCO's, pictures have a `filepath` (a folder) and a `cocoid` too. "restval" is training.
        folder: (filepath or "", a file name) -> the folder of such pictures, relative to data.root; None where there is
            none, and they are left out. Asked once for each `filepath`.
        split_seed: decides which pictures are validation if the file has none.

    Returns:
        Records (none if all their folders are missing), each a group of its own, and notes about what was decided.

    Raises:
        UserError: with the file, and the entry that is wrong.
    """
    (entries,) = read_json(file, slim=_slim, lists=["images"])
    folders: dict[str, str | None] = {}
    first: dict[str, int] = {}  # where each name and each id was met
    records: list[Record] = []
    bare: list[str] = []
    away: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        where = f"{file}, {PLACE.format(number)}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object")
        name, path = check_name(entry.get("filename"), file, PLACE, number), entry.get("filepath", "")
        path = path if path == "" else check_name(path, file, PLACE, number)
        for identity in [f"{path}/{name}", *([f"cocoid {entry['cocoid']}"] if "cocoid" in entry else [])]:
            if first.setdefault(identity, number) != number:
                raise UserError(f"{where}: {identity.lstrip('/')} is a duplicate of images[{first[identity]}]")
        split, sentences = entry.get("split"), entry.get("sentences")
        if not isinstance(split, str) or split not in SPLITS:
            raise UserError(f"{where}: split {shown(split)} is none of {', '.join(SPLITS)}")
        if not isinstance(sentences, list):
            raise UserError(f"{where} has no list of sentences")
        if not sentences:
            bare.append(name)
            continue
        captions = tuple(clean_caption(sentence, file, PLACE, number) for sentence in sentences)
        if path not in folders:
            folders[path] = folder(path, name)
        if folders[path] is None:
            away.setdefault(path, []).append(name)
        else:
            records.append(Record(image=f"{folders[path]}/{name}", captions=captions, split=SPLITS[split]))
    if not records and not away:
        raise UserError(f"{file}: no picture has a caption")
    records, notes = with_validation(records, seed=split_seed)
    for path, names in away.items():
        notes += left_out(names, file, f"there is no folder {path or 'of pictures'}")
    return records, [*left_out(bare, file, "without a caption"), *notes]


def with_validation(records: Sequence[Record], *, seed: int, share: float = SHARE) -> tuple[list[Record], list[str]]:
    """The records with a share of train as validation where there is none, and the note that says so."""
    splits = {record.split for record in records}
    if "val" in splits or "train" not in splits:
        return list(records), []
    note = f"no validation pictures: {share:.0%} of train serve as validation (data.split_seed={seed})"
    return carve_validation(records, seed=seed, share=share), [note]


def _slim(entry: dict[str, Any]) -> Any:
    """Of a sentence its text alone: the file spells out every token, too."""
    return entry.get("raw", entry)
