"""CIFAR-10: files as Python 2 and 3 pickle them, and pickles that would run code."""

import io
import os
import pickle
import struct
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from clipkit.data.sources.cifar10 import cifar10
from clipkit.errors import UserError
from conftest import Command

NAMES = ["airplane", "automobile", "bird"]
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
ROWS = 12


class PythonTwo(pickle._Pickler):  # type: ignore[name-defined]  # the pure Python one can be changed
    """Writes bytes as Python 2 wrote its strings, which is what the real files hold."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2(content: Any) -> bytes:
    stream = io.BytesIO()
    PythonTwo(stream, 2).dump(content)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3(content: Any) -> bytes:
    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    texts = {text(k): [text(v) for v in value] if isinstance(value, list) else value for k, value in content.items()}
    return pickle.dumps(texts, protocol=4)


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (ROWS, 3072), dtype=np.uint8)


def contents() -> dict[str, dict[bytes, Any]]:
    found: dict[str, dict[bytes, Any]] = {
        name: {
            b"batch_label": f"training batch {number + 1} of 5".encode(),
            b"labels": [(row + number) % 3 for row in range(ROWS)],
            b"data": pixels(number),
            b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * ROWS,
        }
        for number, name in enumerate(BATCHES)
    }
    names = [name.encode() for name in NAMES]
    return found | {"batches.meta": {b"num_cases_per_batch": ROWS, b"label_names": names, b"num_vis": 3072}}


@pytest.fixture(params=[python2, python3])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in contents().items():
        (folder / name).write_bytes(request.param(content))
    return folder.parent


def test_the_fixture_is_what_ordinary_pickle_reads(root: Path) -> None:
    content = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes")
    data = content[b"data"] if b"data" in content else content["data"]
    assert (data == pixels(5)).all()


def test_pictures_classes_and_splits_are_those_of_the_files(root: Path) -> None:
    found = cifar10(root)
    assert found.class_names == tuple(NAMES)
    splits = found.table["split"].to_pylist()
    assert Counter(splits) == {"train": 54, "val": 6, "test": ROWS}
    expected = {}
    for number, data in ((number, pixels(number)) for number in range(6)):
        for row in range(ROWS):
            planes = [Image.fromarray(data[row, i * 1024 : (i + 1) * 1024].reshape(32, 32)) for i in range(3)]
            image = Image.merge("RGB", planes).tobytes()
            expected[image] = ((row + number) % 3, number == 5)
    got = {
        found.reader(found.image_name(i)).tobytes(): (int(label), splits[i] == "test")
        for i, label in enumerate(found.labels)
    }
    assert got == expected
    assert "a tenth of train" in found.notes[0]


def test_the_folder_itself_can_be_the_root(root: Path) -> None:
    assert cifar10(root / "cifar-10-batches-py").fingerprint == cifar10(root).fingerprint


def read_in_worker(blob: bytes, name: str) -> bytes:
    return bytes(pickle.loads(blob)(name).tobytes())


def test_the_reader_is_small_and_reads_for_itself_in_another_process(root: Path) -> None:
    found = cifar10(root)
    blob = pickle.dumps(found.reader)
    assert len(blob) < 1000
    for method in ("fork", "spawn"):
        with get_context(method).Pool(1) as pool:
            assert pool.apply(read_in_worker, (blob, "test_batch#3")) == found.reader("test_batch#3").tobytes()


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("file", ["batches.meta", "data_batch_3"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(root: Path, file: str, protocol: int) -> None:
    marker = root / "ran"
    for call in (Hostile(os.system, f"touch {marker}"), Hostile(eval, f"open({str(marker)!r}, 'w')")):
        content = {**contents()[file], b"more": call} if protocol else [call]
        (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(UserError, match=rf"{file} is a pickle that would call .*refused"):
            cifar10(root)
        assert not marker.exists()


@pytest.mark.parametrize("name", ["dtype.__class__", "load", "ndarray.tofile", "core.multiarray._reconstruct"])
def test_names_of_numpy_beyond_its_arrays_are_refused(root: Path, name: str) -> None:
    text = name.encode()
    code = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(text)]) + text + b"\x93."
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(code)
    with pytest.raises(UserError, match=f"would call numpy.{name}"):
        cifar10(root)


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_missing_and_torn_files_are_user_errors(root: Path, name: str) -> None:
    file = root / "cifar-10-batches-py" / name
    whole = file.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"<html>gone</html>"):
        file.write_bytes(torn)
        with pytest.raises(UserError, match=f"{name} cannot be read as a pickle"):
            cifar10(root)
    file.unlink()
    with pytest.raises(UserError, match=rf"{name}.*expected ROOT/cifar-10-batches-py"):
        cifar10(root)


WRONG = {
    "a list": ([1, 2], "holds no dict"),
    "no data": ({b"labels": [0]}, "no `data`.*found: labels"),
    "no labels": ({b"data": pixels(0)}, "no `labels`"),
    "a label beyond": ({b"labels": [3] * ROWS, b"data": pixels(0)}, "class 3 is out of range; 3 classes"),
    "a label below": ({b"labels": [-1] * ROWS, b"data": pixels(0)}, "class -1 is out of range"),
    "too few labels": ({b"labels": [0], b"data": pixels(0)}, "12 pictures, but 1 labels"),
    "floats": ({b"labels": [0], b"data": pixels(0) / 255}, "not an array of bytes"),
    "other sizes": ({b"labels": [0], b"data": pixels(0)[:, :100]}, "not an array of bytes"),
    "three axes": ({b"labels": [0], b"data": pixels(0).reshape(ROWS, 3, 1024)}, "not an array of bytes"),
    "objects": ({b"labels": [0], b"data": np.array([[None]])}, "not an array of bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents_are_user_errors_that_name_the_file(root: Path, case: str) -> None:
    content, message = WRONG[case]
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(python2(content))
    with pytest.raises(UserError, match=f"data_batch_2.*{message}"):
        cifar10(root)


def test_arrays_stored_by_column_are_read_as_what_they_hold(root: Path) -> None:
    content = {b"labels": contents()["test_batch"][b"labels"], b"data": np.asfortranarray(pixels(5))}
    before = cifar10(root).reader("test_batch#4").tobytes()
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(python2(content))
    assert cifar10(root).reader("test_batch#4").tobytes() == before


def test_a_class_without_a_picture_is_named(root: Path) -> None:
    meta = {b"label_names": [*(name.encode() for name in NAMES), b"cat"]}
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(python2(meta))
    with pytest.raises(UserError, match="1 of 4 classes have no picture: cat"):
        cifar10(root)


def test_a_class_that_a_split_lacks_is_kept_and_listed(root: Path) -> None:
    content = contents()["test_batch"] | {b"labels": [0, 1] * (ROWS // 2)}
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(python2(content))
    found = cifar10(root)
    assert found.class_names == tuple(NAMES)
    assert found.notes[1:] == ("1 of 3 classes have no picture in test: bird",)


@pytest.mark.slow
def test_a_model_is_evaluated_on_it_with_one_command(tmp_path: Path, root: Path, clipkit: Command) -> None:
    done = clipkit("evaluate", "model=emoji_clip", "data=cifar10", f"data.root={root}")
    assert done.returncode == 0, done.stdout + done.stderr
