"""How mistakes are made in layouts that had none, and the layouts that only the tests of mistakes need."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_caltech101
import test_cars
import test_cifar10
import test_class_folder
import test_imagenet
from scipy.io import savemat

Break = Callable[[Path], object]
Rename = Callable[[Path, Any], tuple[str, ...]]  # another name for a picture of the list; returns words that say where


def both_gone(*names: str) -> Break:
    return lambda root: [gone(name)(root) for name in names]


def without_captions(file: Path, image: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value | {"annotations": [one for one in value["annotations"] if one["image_id"] != image]}


def gone(name: str) -> Break:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def emptied(name: str) -> Break:
    return lambda root: (root / name).write_bytes(b"")


def cut(name: str, share: float = 0.5) -> Break:
    def make(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * share)])

    return make


def line(name: str, number: int, text: str | bytes | Callable[[str], str]) -> Break:
    """Another text in line `number` of a file."""

    def make(root: Path) -> None:
        lines = (root / name).read_bytes().split(b"\n")
        new = text(lines[number - 1].decode()) if callable(text) else text
        lines[number - 1] = new.encode() if isinstance(new, str) else new
        (root / name).write_bytes(b"\n".join(lines))

    return make


def entry(name: str, key: str, number: int, **values: Any) -> Break:
    """Other values in entry `number` of the list `key` of a JSON file; None takes one away."""

    def make(root: Path) -> None:
        content = json.loads((root / name).read_text(encoding="utf-8"))
        changed = content[key][number] | values
        content[key][number] = {field: value for field, value in changed.items() if value is not None}
        (root / name).write_text(json.dumps(content))  # escapes half surrogate pairs

    return make


def renamed_entry(name: str, key: str, column: str) -> Rename:
    def rename(root: Path, new: Any) -> tuple[str, ...]:
        entry(name, key, 2, **{column: new})(root)
        return name, f"{key}[2]"

    return rename


def latin(name: str, number: int, old: str = "A ", new: bytes = b"\xe9 ") -> Break:
    return lambda root: line(
        name, number, (root / name).read_bytes().split(b"\n")[number - 1].replace(old.encode(), new)
    )(root)


def renamed_line(name: str, separator: str) -> Rename:
    """Another picture in the third line."""

    def rename(root: Path, new: Any) -> tuple[str, ...]:
        line(name, 3, lambda text: str(new) + separator + text.partition(separator)[2])(root)
        return name, "line 3"

    return rename


# Stanford Cars


def cars_rows(count: int = test_cars.TRAIN, **changes: Any) -> Break:
    """cars_train_annos.mat with another first entry."""

    def make(root: Path) -> None:
        rows = test_cars.structs(test_cars.annotations(count, **changes))
        savemat(root / "devkit/cars_train_annos.mat", {"annotations": rows})

    return make


def more_cars(name: str, key: str = "class_names") -> Break:
    names = test_cars.cells([*test_cars.NAMES, "Geo Metro Convertible 1993"])
    return lambda root: savemat(root / name, {key: names})


def combined_rows(root: Path, **changes: Any) -> None:
    rows = [
        {"test": np.uint8(i % 5 == 0), "relative_im_path": f"car_ims/{i + 1:06d}.jpg", "class": np.uint8(i % 3 + 1)}
        for i in range(test_cars.TRAIN + test_cars.TEST)
    ]
    rows[2] = {key: value for key, value in (rows[2] | changes).items() if value is not None}
    rows = rows if len(rows[2]) == 3 else [{key: row[key] for key in rows[2]} for row in rows]
    content = {"annotations": test_cars.structs(rows), "class_names": test_cars.cells(test_cars.NAMES)}
    savemat(root / "cars_annos.mat", content)


def rename_cars(root: Path, new: Any) -> tuple[str, ...]:
    cars_rows(fname=new)(root)
    return "cars_train_annos.mat", "annotations[0]"


def rename_combined(root: Path, new: Any) -> tuple[str, ...]:
    combined_rows(root, relative_im_path=new)
    return "cars_annos.mat", "annotations[2]"


SHARD = "data/test-00000-of-00001.parquet"


def shard(labels: list[int | None], column: str = "label", names: list[str] = test_cars.NAMES) -> Break:
    def make(root: Path) -> None:
        table = pa.table({"image": [{"bytes": b"x"}] * len(labels), column: pa.array(labels, pa.int64())})
        metadata = json.dumps({"info": {"features": {column: {"names": names}}}})
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), root / SHARD)

    return make


def all_shards(names: list[str]) -> Break:
    def make(root: Path) -> None:
        for file in (root / "data").glob("t*.parquet"):
            table = pq.read_table(file)
            metadata = json.dumps({"info": {"features": {"label": {"names": names}}}})
            pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), file)

    return make


# class folders, CIFAR-10, Caltech-101, ImageNet


def write_folder(root: Path) -> None:
    for split, name in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog"), ("test", "cat")):
        test_class_folder.fill(root / split / name, 3)


def write_cifar(root: Path) -> None:
    for name, content in test_cifar10.contents().items():
        (root / name).write_bytes(test_cifar10.python2(content))


def batch(name: str, **values: Any) -> Break:
    """A batch with other entries; None takes one away."""

    def make(root: Path) -> None:
        content = test_cifar10.contents()[name] | {key.encode(): value for key, value in values.items()}
        content = {key: value for key, value in content.items() if value is not None}
        (root / name).write_bytes(test_cifar10.python2(content))

    return make


def write_caltech(root: Path) -> None:
    test_caltech101.fill(root / "101_ObjectCategories")


def not_utf8(*folders: str) -> Break:
    """A picture with a name from another time."""
    return lambda root: open(bytes(root.joinpath(*folders)) + b"/caf\xe9.jpg", "wb").close()


def write_imagenet(root: Path) -> None:
    test_imagenet.folders_with_devkit(root)
    for wnid, _ in test_imagenet.SYNSETS[:-1]:
        test_imagenet.save(root / "train" / wnid / "a.JPEG", 1)


def second_synset(root: Path) -> None:
    rows = [
        {"words": "x", "WNID": wnid, "num_children": np.uint8(0), "ILSVRC2012_ID": np.int16(number)}
        for number, wnid in enumerate(["n02113186", "n01443537", "n02113186"], 1)
    ]
    savemat(root / test_imagenet.DEVKIT / "meta.mat", {"synsets": test_cars.structs(rows)})


# pairs

COLUMNS = ("image", "caption", "kind", "split")
ROWS = [
    [f"pictures/{i}.jpg", f"a picture, {i}", ("cat", "dog")[i % 2], ("train", "val", "test")[i % 3]] for i in range(12)
]


def write_rows(file: Path, rows: list[list[Any]], columns: tuple[str, ...] = COLUMNS) -> None:
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
    elif file.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), file)
    else:
        with file.open("w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
            writer = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerows([columns, *rows])


def cell(file: str, row: int, column: str, value: Any) -> Break:
    def make(root: Path) -> None:
        rows = [list(one) for one in ROWS]
        rows[row][COLUMNS.index(column)] = value
        write_rows(root / file, rows)

    return make
