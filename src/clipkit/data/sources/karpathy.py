"""Karpathy's split files (`dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`): one format for all.

Source: https://cs.stanford.edu/people/karpathy/deepimagesent/ (arXiv 1412.2306). Used by `data=coco`, `data=flickr8k`
and `data=flickr30k`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipkit.data.records import Record
from clipkit.data.sources.annotations import check_name, clean_caption, left_out, read_json
from clipkit.errors import UserError

__all__ = ["SOURCE", "read_karpathy"]

SOURCE = "caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/"
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
PLACE = "images[{}]"


def read_karpathy(file: Path, folder: Callable[[str, str], str]) -> tuple[list[Record], list[str]]:
    """The captioned pictures of a file `{"images": [{filename, filepath, split, sentences: [{raw}]}]}`.

    Args:
        file: in COCO's, pictures have a `filepath` (a folder) and a `cocoid` too. "restval" is training.
        folder: (filepath or "", a file name) -> the folder of such pictures, relative to data.root; asked once for each
            `filepath`.

    Returns:
        Records, each a group of its own, and notes about pictures left out.

    Raises:
        UserError: with the file, and the entry that is wrong.
    """
    (entries,) = read_json(file, slim=_slim, lists=["images"])
    folders: dict[str, str] = {}
    first: dict[str, int] = {}  # where each name and each id was met
    records, bare = [], []
    for number, entry in enumerate(entries):
        where = f"{file}, {PLACE.format(number)}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object")
        path, name = entry.get("filepath", ""), check_name(entry.get("filename"), file, PLACE, number)
        if path != "":
            check_name(path, file, PLACE, number)
        for identity in [f"{path}/{name}", *([f"cocoid {entry['cocoid']}"] if "cocoid" in entry else [])]:
            if first.setdefault(identity, number) != number:
                raise UserError(f"{where}: {identity.lstrip('/')} is a duplicate of images[{first[identity]}]")
        split, sentences = entry.get("split"), entry.get("sentences")
        if not isinstance(split, str) or split not in SPLITS:
            raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        if not isinstance(sentences, list):
            raise UserError(f"{where} has no list of sentences")
        if not sentences:
            bare.append(name)
            continue
        captions = tuple(clean_caption(sentence, file, PLACE, number) for sentence in sentences)
        if path not in folders:
            folders[path] = folder(path, name)
        records.append(Record(image=f"{folders[path]}/{name}", captions=captions, split=SPLITS[split]))
    if not records:
        raise UserError(f"{file}: no picture has a caption")
    return records, left_out(bare, file, "without a caption")


def _slim(entry: dict[str, Any]) -> Any:
    """Of a sentence its text alone: the file spells out every token, too."""
    return entry.get("raw", entry)
