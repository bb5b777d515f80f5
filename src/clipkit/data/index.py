"""The index: tables of records kept on disk, so that a large data set is read once.

An entry is found by the data set's reader and arguments. It is used only while the files and folders that the table was
read from (`Records.inputs`) have the size and time that they had, and the code that reads them is the same.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipkit.data.images import ImageReader
from clipkit.data.keeping import kept
from clipkit.data.records import Records

__all__ = ["indexed"]

HEADER = b"clipkit"


def indexed(read: Callable[[], Records], *, key: Mapping[str, Any], folder: str | Path) -> Records:
    """The records that `read` gives, from the index if they are there and still true.

    Args:
        read: reads the data set; what it gives is kept if it says what it was read from, and its reader has a `spec`.
        key: plain values that say which data set it is, and with which arguments it is read.
        folder: of the index. One that cannot be written costs no more than the time.
    """
    text = json.dumps({"key": dict(key), "folder": os.getcwd(), "code": _code()}, sort_keys=True, default=str)
    place = Path(folder).expanduser() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.arrow"
    known = _load(place)
    if known is not None:
        return known
    began = time.time_ns()
    records = read()
    spec = getattr(records.reader, "spec", None)
    stamps = _stamps(records.inputs)
    if spec is not None and stamps and all(stamp is None or stamp[1] < began for stamp in stamps.values()):
        about = {
            "class_names": records.class_names,
            "name": records.name,
            "notes": records.notes,
            "inputs": stamps,
            "reader": spec(),
        }
        _keep(place, records.table, about)
    return records


def _load(place: Path) -> Records | None:
    """What an entry holds, if it is whole and nothing that it was read from has changed."""
    with suppress(OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()  # pages come from the file when they are used
        about = json.loads(table.schema.metadata[HEADER])
        stamps = {Path(path): stamp for path, stamp in about["inputs"].items()}
        if _stamps(stamps) != about["inputs"]:
            return None
        return Records(
            table.replace_schema_metadata(None),
            _reader(about["reader"]),
            tuple(about["class_names"]),
            about["name"],
            tuple(about["notes"]),
            tuple(stamps),
        )
    return None


def _keep(place: Path, table: pa.Table, about: dict[str, Any]) -> None:
    described = table.replace_schema_metadata({HEADER: json.dumps(about).encode()})
    with (
        suppress(pa.ArrowException),
        kept(place) as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, described.schema) as writer,
    ):
        writer.write_table(described)


def _stamps(paths: Iterable[Path]) -> dict[str, list[int] | None]:
    """Size and time of each file or folder; None where there is none."""
    found: dict[str, list[int] | None] = {}
    for path in paths:
        try:
            status = os.stat(path)
            found[str(path)] = [status.st_size, status.st_mtime_ns]
        except OSError:
            found[str(path)] = None
    return found


def _reader(spec: Mapping[str, Any]) -> ImageReader:
    """A reader from its class, which must be one of clipkit's, and arguments."""
    module, _, name = spec["_target_"].rpartition(".")
    if not module.startswith("clipkit.data."):
        raise ValueError(f"{spec['_target_']} is no reader of clipkit")
    reader: ImageReader = getattr(import_module(module), name)(**{k: v for k, v in spec.items() if k != "_target_"})
    return reader


@cache
def _code() -> str:
    """Changes when any file of `clipkit.data` does: another version may read the same files differently."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for file in sorted(here.rglob("*.py")):
        digest.update(f"{file.relative_to(here)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
