"""Stanford Cars: one table from every layout, and mistakes named."""

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from clipkit.data.parquet import ParquetReader
from clipkit.data.records import Records
from clipkit.data.sources.cars import cars
from clipkit.errors import UserError
from conftest import Command

NAMES = ["AM General Hummer SUV 2000", "Audi S5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
TRAIN, TEST = 30, 12  # pictures; class i % 3
FIELDS = ["fname", "class", "bbox_y2", "bbox_x1", "bbox_x2", "bbox_y1"]  # in another order than the documentation's
LAYOUTS: dict[str, Callable[[Path], None]] = {}


def layout(write: Callable[[Path], None]) -> Callable[[Path], None]:
    LAYOUTS[write.__name__] = write
    return write


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 255 - number, 7)).save(stream, "PNG")
    return stream.getvalue()


def save_pictures(folder: Path, numbers: range, name: str = "{:05d}.jpg") -> None:
    folder.mkdir(parents=True)
    for place, number in enumerate(numbers, 1):
        (folder / name.format(place)).write_bytes(png(number))  # PNG inside: exact colours


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """MATLAB's 1 × N struct array."""
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def cells(values: list[str]) -> np.ndarray:
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def annotations(count: int, **changes: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        values = {"fname": f"{i + 1:05d}.jpg", "class": np.uint8(i % 3 + 1), "bbox_x1": 1, "bbox_y1": 2}
        values |= {"bbox_x2": np.uint16(300), "bbox_y2": np.uint16(200)} | (changes if i == 0 else {})
        rows.append({field: values[field] for field in FIELDS if values[field] is not None})
    return rows


def devkit(folder: Path, *, labels: Path | None) -> None:
    folder.mkdir(parents=True)
    savemat(folder / "cars_meta.mat", {"class_names": cells(NAMES)})
    savemat(folder / "cars_train_annos.mat", {"annotations": structs(annotations(TRAIN))})
    bare = [{k: v for k, v in row.items() if k != "class"} for row in annotations(TEST)]
    savemat(folder / "cars_test_annos.mat", {"annotations": structs(bare)})
    if labels is not None:
        savemat(labels / "cars_test_annos_withlabels.mat", {"annotations": structs(annotations(TEST))})


@layout
def original(root: Path) -> None:
    devkit(root / "devkit", labels=root)
    save_pictures(root / "cars_train", range(TRAIN))
    save_pictures(root / "cars_test", range(TRAIN, TRAIN + TEST))


@layout
def labels_in_the_devkit(root: Path) -> None:
    original(root)
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")


@layout
def torchvision(root: Path) -> None:
    original(root / "stanford_cars")


@layout
def kaggle(root: Path) -> None:
    devkit(root / "car_devkit" / "devkit", labels=root)
    save_pictures(root / "cars_train" / "cars_train", range(TRAIN))
    save_pictures(root / "cars_test" / "cars_test", range(TRAIN, TRAIN + TEST))


@layout
def kaggle_with_a_stray_list(root: Path) -> None:
    kaggle(root)
    savemat(root / "cars_annos.mat", {"annotations": structs(annotations(3)), "class_names": cells(NAMES)})


@layout
def combined(root: Path) -> None:
    save_pictures(root / "car_ims", range(TRAIN + TEST), "{:06d}.jpg")
    rows = [
        {
            "test": np.uint8(i >= TRAIN),
            "relative_im_path": f"car_ims/{i + 1:06d}.jpg",
            "class": np.uint8((i if i < TRAIN else i - TRAIN) % 3 + 1),
            "bbox_x1": 1,
        }
        for i in range(TRAIN + TEST)
    ]
    savemat(root / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells(NAMES)})


def parquet(file: Path, first: int, count: int, start: int = 0, names: list[str] | None = NAMES) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": png(first + i), "path": f"{i:05d}.jpg"} for i in range(start, start + count)],
            "label": pa.array([i % 3 for i in range(start, start + count)], pa.int64()),
        }
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, file, row_group_size=7)


@layout
def mirror(root: Path) -> None:
    parquet(root / "data" / "train-00000-of-00002.parquet", 0, 17)
    parquet(root / "data" / "train-00001-of-00002.parquet", 0, TRAIN - 17, start=17)
    parquet(root / "data" / "test-00000-of-00001.parquet", TRAIN, TEST)
    parquet(root / "data" / "contrast-00000-of-00001.parquet", TRAIN, TEST)  # of the mirror, not of the data set


def table(records: Records) -> list[tuple[bytes, str, str]]:
    """Content, class name and split of each picture."""
    splits = records.table["split"].to_pylist()
    return sorted(
        (records.reader(records.image_name(i)).tobytes(), records.class_names[int(label)], splits[i])
        for i, label in enumerate(records.labels)
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_pictures_classes_and_splits(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path / name)
    found = cars(tmp_path / name)
    expected = {
        Image.new("RGB", (6, 4), (n, 255 - n, 7)).tobytes(): (
            found.class_names[(n if n < TRAIN else n - TRAIN) % 3],
            "train" if n < TRAIN else "test",
        )
        for n in range(TRAIN + TEST)
    }
    got = table(found)
    assert {pixels: (label, "train" if split == "val" else split) for pixels, label, split in got} == expected
    assert [split for *_, split in got].count("val") == TRAIN / 10
    original(tmp_path / "reference")
    assert got == table(cars(tmp_path / "reference"))
    assert found.class_names == (
        "2000 AM General Hummer SUV",
        "2012 Audi S5 Coupe",
        "2012 Ram C/V Cargo Van Minivan",
    )
    assert len(found.notes) == 1
    assert "a tenth of train" in found.notes[0]


def test_class_names_can_stay_as_they_were(tmp_path: Path) -> None:
    original(tmp_path)
    assert cars(tmp_path, year_first=False).class_names == tuple(NAMES)


@pytest.mark.parametrize("name", ["original", "mirror"])
def test_without_test_labels_train_is_divided_and_that_is_said(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path)
    for file in [*tmp_path.rglob("*withlabels.mat"), *tmp_path.rglob("test-*")]:
        file.unlink()
    found = cars(tmp_path)
    assert len(found) == TRAIN
    assert {split: len(found.select(split)) for split in ("train", "val", "test")} == {"train": 21, "val": 3, "test": 6}
    assert "70/10/20" in found.notes[0]
    assert "cars_test_annos_withlabels.mat" in found.notes[0]
    assert table(cars(tmp_path, split_seed=2)) != table(found)


MISSING = {
    "no folder": (original, ".", "no such folder"),
    "class names": (original, "devkit/cars_meta.mat", "cars_meta.mat is missing"),
    "annotations": (original, "devkit/cars_train_annos.mat", "no Stanford Cars found"),
    "train pictures": (original, "cars_train", r"cars_train is missing"),
    "test pictures": (kaggle, "cars_test", r"cars_test is missing"),
    "all pictures": (combined, "car_ims", r"car_ims is missing"),
    "a shard": (mirror, "data/train-00001-of-00002.parquet", "1 of the 2 train-"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_named_with_the_layouts_and_where_copies_are(tmp_path: Path, case: str) -> None:
    write, gone, message = MISSING[case]
    root = tmp_path / "root"
    write(root)
    shutil.rmtree(root / gone) if (root / gone).is_dir() else (root / gone).unlink()
    with pytest.raises(UserError, match=message) as caught:
        cars(root)
    if case != "a shard":
        for word in (
            "car_ims",
            "cars_train/*.jpg",
            "train-*.parquet",
            "stanford-cars-dataset",
            "tanganke/stanford_cars",
        ):
            assert word in str(caught.value)


@pytest.mark.parametrize("value", [0, 4, 1.5, "Audi"])
def test_a_class_out_of_range_is_named(tmp_path: Path, value: object) -> None:
    original(tmp_path)
    savemat(tmp_path / "devkit/cars_train_annos.mat", {"annotations": structs(annotations(9, **{"class": value}))})
    with pytest.raises(
        UserError, match=rf"cars_train_annos.mat, annotations\[0\]: class {value!r} is out of range; 3 classes"
    ):
        cars(tmp_path)


@pytest.mark.parametrize("fname", ["../../secret.jpg", "/etc/passwd", "..\\secret.jpg", "C:/secret.jpg", ""])
def test_a_picture_outside_the_folder_is_refused(tmp_path: Path, fname: str) -> None:
    original(tmp_path)
    savemat(tmp_path / "devkit/cars_train_annos.mat", {"annotations": structs(annotations(9, fname=fname))})
    with pytest.raises(UserError, match=r"cars_train_annos.mat, annotations\[0\]: .* is no file name inside"):
        cars(tmp_path)


def test_a_class_without_a_picture_is_named(tmp_path: Path) -> None:
    original(tmp_path)
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": cells([*NAMES, "Geo Metro Convertible 1993"])})
    with pytest.raises(UserError, match="1 of 4 classes have no picture: Geo Metro Convertible 1993"):
        cars(tmp_path)


def test_a_class_that_a_split_lacks_is_kept_and_listed(tmp_path: Path) -> None:
    original(tmp_path)
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": structs(annotations(2))})
    found = cars(tmp_path)
    assert len(found.class_names) == 3
    assert found.notes[1:] == ("1 of 3 classes have no picture in test: 2012 Ram C/V Cargo Van Minivan",)


def test_one_annotation_is_a_list_of_one(tmp_path: Path) -> None:
    original(tmp_path)
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": cells(NAMES[:1])})
    for file in (tmp_path / "devkit/cars_train_annos.mat", tmp_path / "cars_test_annos_withlabels.mat"):
        savemat(file, {"annotations": structs(annotations(1))})
    assert len(cars(tmp_path)) == 2


@pytest.mark.parametrize("size", [0, 100, 300, 1000])
def test_a_torn_mat_file_is_a_user_error(tmp_path: Path, size: int) -> None:
    original(tmp_path)
    file = tmp_path / "devkit/cars_train_annos.mat"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=re.escape(str(file))):
        cars(tmp_path)


def test_annotations_without_a_field_or_variable_are_named(tmp_path: Path) -> None:
    original(tmp_path)
    file = tmp_path / "devkit/cars_train_annos.mat"
    savemat(file, {"annotations": structs([{"fname": "a.jpg", "bbox_x1": 1}])})
    with pytest.raises(UserError, match="annotations lack class; found: fname, bbox_x1"):
        cars(tmp_path)
    savemat(file, {"annotation": np.arange(3)})
    with pytest.raises(UserError, match="no variable annotations; found: annotation"):
        cars(tmp_path)
    savemat(file, {"annotations": np.arange(3)})
    with pytest.raises(UserError, match="found: no fields"):
        cars(tmp_path)


def test_damaged_and_foreign_parquet_files_are_user_errors(tmp_path: Path) -> None:
    mirror(tmp_path)
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    whole = file.read_bytes()
    for torn in (b"", whole[:50], whole[: len(whole) // 2]):
        file.write_bytes(torn)
        with pytest.raises(UserError, match=rf"{re.escape(str(file))} cannot be read as Parquet"):
            cars(tmp_path)
    pq.write_table(pa.table({"img": [1], "label": [0]}), file)
    with pytest.raises(UserError, match="no column image; found: img, label"):
        cars(tmp_path)
    parquet(file, TRAIN, TEST, names=None)
    with pytest.raises(UserError, match="does not name its classes"):
        cars(tmp_path)
    parquet(file, TRAIN, TEST, names=NAMES[::-1])
    with pytest.raises(UserError, match="names other classes"):
        cars(tmp_path)
    parquet(file, TRAIN, TEST, names=NAMES)
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", 0, 17, start=1)
    assert len(cars(tmp_path)) == TRAIN + TEST


def read_in_worker(blob: bytes, name: str) -> bytes:
    reader: ParquetReader = pickle.loads(blob)
    return reader(name).tobytes()


def test_the_parquet_reader_is_small_lazy_and_works_in_another_process(tmp_path: Path) -> None:
    mirror(tmp_path)
    found = cars(tmp_path)
    names = [found.image_name(row) for row in range(len(found))]
    direct = {name: found.reader(name).tobytes() for name in names}
    assert len(set(direct.values())) == TRAIN + TEST
    assert {name: found.reader(name).tobytes() for name in names[::-1]} == direct  # any order
    blob = pickle.dumps(found.reader)
    assert len(blob) < 1000
    for method in ("fork", "spawn"):
        with get_context(method).Pool(1) as pool:
            assert pool.apply(read_in_worker, (blob, names[20])) == direct[names[20]]


def test_rows_and_files_that_are_not_there_are_broken_pictures(tmp_path: Path) -> None:
    mirror(tmp_path)
    reader = ParquetReader(tmp_path)
    with pytest.raises(OSError, match="no row 99"):
        reader("data/test-00000-of-00001.parquet#99")
    with pytest.raises(OSError, match="nowhere"):
        reader("data/nowhere.parquet#0")
    assert reader.stamp("data/nowhere.parquet#0") == "missing"
    before = cars(tmp_path).fingerprint
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", TRAIN + 1, TEST)
    assert cars(tmp_path).fingerprint != before


@pytest.mark.parametrize("name", ["kaggle", pytest.param("mirror", marks=pytest.mark.slow)])
def test_a_model_is_evaluated_on_it_with_one_command(tmp_path: Path, clipkit: Command, name: str) -> None:
    LAYOUTS[name](tmp_path / "cars")
    done = clipkit("evaluate", "model=emoji_clip", "data=cars", f"data.root={tmp_path / 'cars'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"test ({TEST} pictures)" in done.stdout + next(tmp_path.rglob("report.html")).read_text()


@pytest.mark.slow
def test_a_wrong_folder_is_one_message_on_the_command_line(tmp_path: Path, clipkit: Command) -> None:
    done = clipkit("evaluate", "model=emoji_clip", "data=cars", f"data.root={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no Stanford Cars found" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
