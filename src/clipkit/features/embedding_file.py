"""One file of embeddings: a row a picture, with the picture's stamp and a checksum.

Broken pictures stand in batches of their own, so that the embeddings of the others are read without a copy.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.decoding import Broken

__all__ = ["blocks", "copy_rows", "make_batch", "read_rows", "schema_of", "still_true"]

HEADER = b"clipkit"
AT_ONCE = 1024  # rows copied at a time
Array = NDArray[np.float32]


def schema_of(width: int, key: str) -> pa.Schema:
    """The columns, and the key in the header."""
    columns: list[tuple[str, Any]] = [
        ("path", pa.large_string()),
        ("stamp", pa.string()),
        ("broken", pa.string()),  # why, or ""
        ("embed", pa.list_(pa.float32(), width)),
        ("check", pa.uint32()),
    ]
    return pa.schema(columns, metadata={HEADER: key.encode()})


def make_batch(
    schema: pa.Schema, paths: Sequence[str], stamps: dict[str, str], broken: Sequence[str], embeds: Array
) -> pa.RecordBatch:
    """Some pictures with their embeddings [n, D], and why they are broken ("": they are not)."""
    own = [stamps[path] for path in paths]
    checks = [checksum(*row) for row in zip(paths, own, broken, embeds, strict=True)]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(embeds).reshape(-1)), embeds.shape[1])
    return pa.record_batch([paths, own, broken, flat, pa.array(checks, pa.uint32())], schema=schema)


def checksum(path: str, stamp: str, broken: str, embed: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(embed).tobytes(), zlib.crc32(f"{path}\0{stamp}\0{broken}".encode()))


def read_rows(place: Path, key: str) -> pa.Table | None:
    """The rows of an index file, memory-mapped; None if it is missing, damaged or of another key."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(place))) as reader:
            table = reader.read_all()
        if table.schema != schema_of(table.schema.field("embed").type.list_size, key):
            return None
        if (table.schema.metadata or {}).get(HEADER) != key.encode():
            return None
        table.validate(full=True)  # offsets that lead astray would end the process
    except (OSError, pa.ArrowException, KeyError, AttributeError, ValueError):
        return None
    return table


def blocks(table: pa.Table) -> Iterator[tuple[Array, str]]:
    """The embeddings, batch by batch, without a copy, and whether a batch is of broken pictures."""
    for batch in table.to_batches():
        embeds = batch.column("embed")
        array = embeds.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), embeds.type.list_size)
        yield array, batch.column("broken")[0].as_py() if len(batch) else ""


def still_true(table: pa.Table, stamps: dict[str, str]) -> dict[str, int]:
    """The pictures whose rows are whole and of the same file, each with its row number."""
    embeds = [row for block, _ in blocks(table) for row in block]
    columns = (table[name].to_pylist() for name in ("path", "stamp", "broken", "check"))
    return {
        path: row
        for row, (path, stamp, broken, check) in enumerate(zip(*columns, strict=True))
        if stamps.get(path) == stamp and checksum(path, stamp, broken, embeds[row]) == check
    }


def copy_rows(table: pa.Table, rows: Sequence[int], writer: Any) -> list[Broken]:
    """Hand on the rows of readable pictures; the broken ones are returned, for later."""
    broken = table["broken"].to_pylist()
    paths = table["path"].to_pylist()
    fine = [row for row in rows if not broken[row]]
    for start in range(0, len(fine), AT_ONCE):
        for batch in table.take(pa.array(fine[start : start + AT_ONCE])).to_batches():
            writer.write_batch(batch)
    return [(paths[row], broken[row]) for row in rows if broken[row]]
