"""CIFAR-10 (Krizhevsky, 2009), the "python version": 60,000 pictures of 32 × 32 in 10 classes.

Run: python -m clipkit.train data=cifar10 data.root=/path/to/cifar-10-batches-py

The files are pickles. They are read without numpy's own unpickling: whatever a pickle names must be one of three
stand-ins below, and nothing else is imported or called.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.listing import Inputs, check_classes, check_root, shown
from clipkit.data.records import Record, Records
from clipkit.data.splits import carve_validation
from clipkit.errors import UserError

__all__ = ["cifar10"]

FOLDER, META = "cifar-10-batches-py", "batches.meta"
BATCHES = {f"data_batch_{number}": "train" for number in range(1, 6)} | {"test_batch": "test"}
LAYOUT = f"expected ROOT/{FOLDER}/ (or ROOT itself) with {META}, data_batch_1 … data_batch_5 and test_batch"
SIDE = 32


def cifar10(root: str | Path, *, split_seed: int = 1) -> Records:
    """The pictures under their official splits; a tenth of train, by class and seed, serves as validation.

    Raises:
        UserError: a file is missing or damaged, would run code, or has a label out of range.
    """
    root = check_root(root, LAYOUT)
    folder = Inputs().first([root / FOLDER / META, root / META])  # quick to read: nothing is said to be kept
    if folder is None:
        raise UserError(f"data.root={root}: no {META} found; {LAYOUT}")
    reader = BatchReader(folder.parent)
    names = [_class_name(name, folder, n) for n, name in enumerate(_entry(_read(folder), folder, "label_names", list))]
    records = []
    for batch, split in BATCHES.items():
        file = reader.root / batch
        content = _read(file)
        labels, pixels = _entry(content, file, "labels", list), reader.keep(batch, content)
        if len(pixels) != len(labels):
            raise UserError(f"{file}: {len(pixels)} pictures, but {len(labels)} labels")
        for row, label in enumerate(labels):
            if not isinstance(label, int) or not 0 <= label < len(names):
                found = f"{file}, labels[{row}]: class {shown(label)}"
                raise UserError(f"{found} is out of range; {len(names)} classes are numbered from 0")
            records.append(Record(image=f"{batch}#{row}", label=label, split=split))
    records = carve_validation(records, seed=split_seed)
    note = f"a tenth of train, by class, serves as validation (data.split_seed={split_seed})"
    notes = [note, *check_classes(reader.root, names, records)]
    return Records.from_records(records, reader=reader, class_names=names, name="cifar10").noting(notes)


class BatchReader:
    """Serves "BATCH#ROW". Each process reads a batch (31 MB) when it is first asked for a picture of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._batches: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, name: str) -> Image.Image:
        batch, _, row = name.partition("#")
        pixels = self._batches[batch] if batch in self._batches else self.keep(batch, _read(self.root / batch))
        return Image.fromarray(pixels[int(row)].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def stamp(self, name: str) -> str:
        try:
            status = os.stat(self.root / name.partition("#")[0])
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def keep(self, batch: str, content: dict[str, Any]) -> NDArray[np.uint8]:
        """[N, 3072]: red, green and blue planes of each picture, row by row; kept for this process."""
        array: _Array = _entry(content, self.root / batch, "data", _Array)
        self._batches[batch] = array.pixels(self.root / batch)
        return self._batches[batch]

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "_batches": {}}


class _Array:
    """What a pickled array is read as: its description, whatever the pickle calls on the way."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self, file: Path) -> NDArray[np.uint8]:
        """The array, if it is bytes of 32 × 32 pictures."""
        width = 3 * SIDE * SIDE
        try:
            _, shape, dtype, by_column, data = self.state
            good = (
                _text(dtype.arguments[0]) == "u1" and isinstance(data, bytes) and shape == (len(data) // width, width)
            )
            good = good and len(data) % width == 0
        except (AttributeError, IndexError, TypeError, ValueError):
            good = False
        if not good:
            raise UserError(f"{file}: `data` is not an array of bytes [N, {width}]")
        return np.frombuffer(data, np.uint8).reshape((-1, width), order="F" if by_column else "C")


class _DType(_Array):
    """What a pickled number type is read as."""


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and the stand-ins, and refuses every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> type:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _DType if name == "dtype" else _Array
        raise _Forbidden(f"{module}.{name}")


class _Forbidden(pickle.UnpicklingError):
    pass


def _read(file: Path) -> dict[str, Any]:
    """A pickled dict, whose keys may be bytes or text."""
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="bytes").load()
    except FileNotFoundError:
        raise UserError(f"{file} is missing; {LAYOUT}") from None
    except _Forbidden as error:
        raise UserError(
            f"{file} is a pickle that would call {error}, so it is refused; nothing of it was run"
        ) from None
    except Exception as error:  # torn or hostile pickles raise any kind; none of it is our code
        raise UserError(f"{file} cannot be read as a pickle: {str(error) or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no dict; {LAYOUT}")
    return {_text(name): value for name, value in content.items()}


def _entry(content: dict[str, Any], file: Path, key: str, kind: type) -> Any:
    if not isinstance(content.get(key), kind):
        raise UserError(f"{file} has no `{key}` as CIFAR-10's files have it; found: {', '.join(content) or 'nothing'}")
    return content[key]


def _class_name(name: object, file: Path, number: int) -> str:
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}, label_names[{number}]: {name!r} is not UTF-8 text ({error.reason})") from error


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
