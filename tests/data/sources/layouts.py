"""Small copies of COCO, Flickr8k and Flickr30k in the layouts that people have, made of emoji pictures.

Each writer returns what the records must be: {picture, relative to the root: (captions, split)}; split None where no
file decides it.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from clipkit.data.records import Records
from clipkit.data.sources.emoji import emoji

Expected = dict[str, tuple[list[str], str | None]]


@cache
def emojis() -> Records:
    return emoji().select("train")


def captions_of(number: int, count: int = 5) -> list[str]:
    """Captions with what captions have: commas, quotation marks, bars, letters of other languages."""
    label = emojis().captions(number)[0]
    kinds = ("A {} .", "a {}, drawn", 'a "{}"', "ein {} — süß", '"{}", it says', "{} | again")
    return [kinds[i % len(kinds)].format(label) for i in range(count)]


def save_pictures(folder: Path, names: Iterable[str], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, first):
        picture = emojis().reader(emojis().image_name(number)).resize((48, 48))
        picture.save(folder / name, "JPEG")


def content(records: Records, *, splits: bool = True) -> Expected:
    """The records as the writers describe them."""
    split_of = records.table["split"].to_pylist()
    return {records.image_name(i): (records.captions(i), split_of[i] if splits else None) for i in range(len(records))}


def write_json(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return file


# COCO


def write_coco_2017(root: Path, *, train: int = 40, val: int = 8, images: str = "") -> Expected:
    """annotations/captions_{train,val}2017.json; the pictures' folders in `images`. train2017 is expected as None."""
    expected: Expected = {}
    for folder, count, first in (("train2017", train, 0), ("val2017", val, train)):
        value = coco_2017(count, first)
        write_json(root / "annotations" / f"captions_{folder}.json", value)
        names = [image["file_name"] for image in value["images"]]
        save_pictures(root / images / folder, names, first)
        for i, name in enumerate(names):
            split = None if folder == "train2017" else "test"
            expected[(Path(images) / folder / name).as_posix()] = (captions_of(first + i, 5 + i % 2), split)
    return expected


def coco_2017(count: int, first: int = 0) -> dict[str, Any]:
    """The content of a captions file: captions in another order than pictures, with blanks around them."""
    numbers = range(first, first + count)
    images = [
        {"license": 3, "file_name": f"{7 * n:012d}.jpg", "height": 48, "width": 48, "coco_url": "http://…", "id": 7 * n}
        for n in numbers
    ]
    texts = [(7 * n, text) for n in numbers for text in captions_of(n, 5 + (n - first) % 2)]
    texts.sort(key=lambda pair: -pair[0])  # stable: the captions of one picture keep their order
    annotations = [
        {"image_id": image, "id": 1000 + i, "caption": f"{text}{(' ', chr(10), '')[i % 3]}"}
        for i, (image, text) in enumerate(texts)
    ]
    return {"info": {"year": 2017}, "images": images, "licenses": [{"id": 3}], "annotations": annotations}


def karpathy(splits: Sequence[str], *, coco: bool) -> dict[str, Any]:
    """The content of a Karpathy file with these splits."""
    images = []
    for n, split in enumerate(splits):
        folder = "train2014" if split == "train" else "val2014"
        entry: dict[str, Any] = {"filepath": folder} if coco else {}
        entry |= {"sentids": [5 * n + k for k in range(5)], "imgid": n, "split": split}
        entry["filename"] = f"COCO_{folder}_{n:012d}.jpg" if coco else f"{100 + n}_ab{n}.jpg"
        entry["sentences"] = [
            {"tokens": text.lower().split(), "raw": text, "imgid": n, "sentid": 5 * n + k}
            for k, text in enumerate(captions_of(n))
        ]
        images.append(entry | ({"cocoid": n} if coco else {}))
    return {"images": images, "dataset": "coco" if coco else "flickr"}


KARPATHY_SPLITS = ("train",) * 16 + ("restval",) * 4 + ("val",) * 6 + ("test",) * 6


def write_coco_karpathy(root: Path, *, images: str = "", annotations: str = "") -> Expected:
    value = karpathy(KARPATHY_SPLITS, coco=True)
    write_json(root / annotations / "dataset_coco.json", value)
    expected: Expected = {}
    for n, entry in enumerate(value["images"]):
        save_pictures(root / images / entry["filepath"], [entry["filename"]], n)
        name = (Path(images) / entry["filepath"] / entry["filename"]).as_posix()
        expected[name] = (captions_of(n), "train" if entry["split"] == "restval" else entry["split"])
    return expected


# Flickr


def write_flickr_karpathy(root: Path, name: str, folder: str) -> Expected:
    """dataset_{name}.json, and the pictures in `folder`."""
    splits = [split for split in KARPATHY_SPLITS if split != "restval"]
    value = karpathy(splits, coco=False)
    write_json(root / f"dataset_{name}.json", value)
    names = [entry["filename"] for entry in value["images"]]
    save_pictures(root / folder, names)
    return {f"{folder}/{one}": (captions_of(n), splits[n]) for n, one in enumerate(names)}


def write_flickr8k_kaggle(root: Path, count: int = 32) -> Expected:
    """Images/ and captions.txt."""
    names = [f"{100 + n}_ab{n}.jpg" for n in range(count)]
    save_pictures(root / "Images", names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "caption"])
    for n, name in enumerate(names):
        writer.writerows([name, caption] for caption in captions_of(n))
    (root / "captions.txt").write_text(text.getvalue(), encoding="utf-8")
    return {f"Images/{name}": (captions_of(n), None) for n, name in enumerate(names)}


def write_flickr8k_original(root: Path, *, folder: str = "Flicker8k_Dataset", texts: str = "") -> Expected:
    """Flickr8k.token.txt and the split lists in `texts`: 24 train, 4 dev, 4 test, and two pictures in no list."""
    splits = [*["train"] * 24, *["dev"] * 4, *["test"] * 4, None, None]
    names = [f"{100 + n}_ab{n}.jpg" for n in range(len(splits))]
    save_pictures(root / folder, names)
    (root / texts).mkdir(exist_ok=True)
    lines = [f"{name}#{k}\t{text}" for n, name in enumerate(names) for k, text in enumerate(captions_of(n))]
    (root / texts / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split in ("train", "dev", "test"):
        chosen = [name for name, own in zip(names, splits, strict=True) if own == split]
        (root / texts / f"Flickr_8k.{split}Images.txt").write_text("\n".join(chosen) + "\n")
    return {
        f"{folder}/{name}": (captions_of(n), {"dev": "val"}.get(split, split))
        for n, (name, split) in enumerate(zip(names, splits, strict=True))
        if split is not None
    }


def write_flickr30k_kaggle(root: Path, *, folder: str = "flickr30k_images", place: str = "") -> Expected:
    """results.csv in `place`, with the one line that lacks its second bar, and the pictures in `folder`."""
    names = [f"{100 + n}.jpg" for n in range(62)]
    save_pictures(root / folder, names)
    lines = ["image_name| comment_number| comment"]
    for n, name in enumerate(names):
        lines += [f"{name}| {k}| {text}" for k, text in enumerate(captions_of(n, 6))]
    lines[5] = lines[5].replace("| 4|", "| 4  ")
    (root / place).mkdir(exist_ok=True)
    (root / place / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {f"{folder}/{name}": (captions_of(n, 6), None) for n, name in enumerate(names)}


def write_flickr30k_original(root: Path, *, place: str = "", folder: str = "flickr30k-images") -> Expected:
    """results_20130124.token in `place`, and the pictures in `folder`."""
    names = [f"{100 + n}.jpg" for n in range(62)]
    save_pictures(root / folder, names)
    lines = [f"{name}#{k}\t{text}" for n, name in enumerate(names) for k, text in enumerate(captions_of(n))]
    (root / place).mkdir(exist_ok=True)
    (root / place / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {f"{folder}/{name}": (captions_of(n), None) for n, name in enumerate(names)}
