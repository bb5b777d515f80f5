"""Reads what Weights & Biases has written to a run's folder: the records of a `.wandb` file, one after the other.

The file is a log of LevelDB's kind: 7 bytes of header, then blocks of 32 KiB, in which a record stands whole (type 1)
or in pieces (2 first, 3 middle, 4 last), each after its CRC32, length and type.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def offline_folders(run: Path) -> list[Path]:
    """The folders of a run's W&B parts, oldest first: one for each start."""
    return sorted((run / "wandb").glob("offline-run-*"))


def records(folder: Path) -> Iterator[Record]:
    """Every record of a W&B folder's file; ends where a killed process has left it unfinished."""
    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, pieces = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # too little room for another piece
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        body = data[place + HEADER : place + HEADER + length]
        if kind == 0:  # the rest of this block is empty
            place += left
            continue
        if len(body) < length:
            return
        assert zlib.crc32(bytes([kind]) + body) == checksum
        pieces += body
        place += HEADER + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def key_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that are drawn as curves."""
    rows = [record.history.item for record in records(folder) if record.HasField("history")]
    return [{key_of(item): json.loads(item.value_json) for item in row} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    """The run's final numbers, as they stand after all changes."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.HasField("summary"):
            found |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
            for item in record.summary.remove:
                found.pop(key_of(item), None)
    return found


def config(folder: Path) -> dict[str, Any]:
    """The run's configuration, with all changes."""
    found: dict[str, Any] = {}
    for record in records(folder):
        changes = [record.run.config] if record.HasField("run") else []
        changes += [record.config] if record.HasField("config") else []
        for change in changes:
            for item in change.update:
                keys = list(item.nested_key) or [item.key]
                place = found
                for key in keys[:-1]:
                    place = place.setdefault(key, {})
                place[keys[-1]] = json.loads(item.value_json)
    return found


def run_record(folder: Path) -> Any:
    """What identifies the run: its id, name, group, job type, tags, notes."""
    return next(record.run for record in records(folder) if record.HasField("run"))


def metric_axes(folder: Path) -> dict[str, str]:
    """Over which other metric each one is drawn."""
    defined: dict[str, str] = {}
    names: list[str] = []
    for record in records(folder):
        if record.HasField("metric"):
            names.append(record.metric.name)
            axis = record.metric.step_metric
            if not axis and record.metric.step_metric_index:
                axis = names[record.metric.step_metric_index - 1]
            defined[record.metric.name] = axis
    return defined
