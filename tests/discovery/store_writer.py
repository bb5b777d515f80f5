"""A process that writes to a novelty store and may be killed: `python store_writer.py FOLDER WHAT [SEED]`.

Picture number n has content and embedding that follow from its name, so that anyone can check them.
"""

import hashlib
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.discovery import store_tables
from clipkit.discovery.appended_rows import AppendedRows
from clipkit.discovery.store import NoveltyStore, Scored

EMBED_DIM, CALL, OVERLAP = 64, 50, 120


def open_store(folder: Path) -> NoveltyStore:
    return NoveltyStore.open(folder, model="tiny+knn", embed_dim=EMBED_DIM, threshold=0.5)


def name_of(number: int) -> str:
    return f"/pictures/{number:06d}.jpg"


def embeds_of(names: list[str]) -> NDArray[np.float32]:
    """[n, D], different for every name."""
    digests = b"".join(hashlib.shake_256(name.encode()).digest(2 * EMBED_DIM) for name in names)
    return np.frombuffer(digests, np.uint16).reshape(-1, EMBED_DIM).astype(np.float32)


def pictures(numbers: list[int]) -> tuple[list[Scored], NDArray[np.float32]]:
    """What `add` takes; odd numbers are novel."""
    names = [name_of(number) for number in numbers]
    scored = [
        Scored(name, hashlib.sha256(name.encode()).hexdigest(), 0.25 + number % 2 / 2, number % 2 == 1, "cat")
        for name, number in zip(names, numbers, strict=True)
    ]
    return scored, embeds_of(names)


def numbers_in(store: NoveltyStore) -> list[int]:
    """The pictures of a store by number, row by row, after a look at everything that is known of each."""
    with closing(sqlite3.connect(store.files.database)) as db:
        rows = db.execute("SELECT row, name, content FROM pictures ORDER BY row").fetchall()
    assert [row for row, _, _ in rows] == list(range(len(store)))
    names = [name for _, name, _ in rows]
    assert [content for _, _, content in rows] == [hashlib.sha256(name.encode()).hexdigest() for name in names]
    np.testing.assert_array_equal(store.embeds(range(len(store))), embeds_of(names))
    assert not store.files.embeds.goes_beyond(len(store))
    return [int(Path(name).stem) for name in names]


def filled(folder: Path, count: int = 20) -> NoveltyStore:
    store = open_store(folder)
    assert store.add(*pictures(list(range(count)))) == count
    return store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def add_for_ever(store: NoveltyStore) -> None:
    """Call after call; the number of pictures is said when a call has returned."""
    first = len(store)
    while True:
        store.add(*pictures(list(range(first, first + CALL))))
        first += CALL
        print(first, flush=True)


def add_overlapping(store: NoveltyStore, seed: int) -> None:
    """The same pictures in another order, a few at a time; waits until it is told to begin."""
    order = np.random.default_rng(seed).permutation(OVERLAP).tolist()
    print("ready", flush=True)
    sys.stdin.readline()
    new = 0
    for start in range(0, OVERLAP, 7):
        new += store.add(*pictures(order[start : start + 7]))
        time.sleep(0.01)  # as if the next ones were scored
    print(new)


def die_at(point: str, folder: Path) -> None:
    """Killed by itself in the middle of a call."""
    append, insert, create = AppendedRows.append, store_tables.insert_pictures, store_tables.create_tables

    def half(self: AppendedRows, values: NDArray[np.float32]) -> None:
        with self.file.open("ab") as file:
            file.write(values.tobytes()[: values.nbytes // 2 + 3])
        die()

    def whole(self: AppendedRows, values: NDArray[np.float32]) -> None:
        append(self, values)
        die()

    def inserted(db, pictures, *, first):  # type: ignore[no-untyped-def]
        db.execute("PRAGMA cache_size=2")
        db.execute("PRAGMA cache_spill=ON")  # changed pages reach the file before the commit, as in the middle of one
        insert(db, pictures, first=first)
        assert (folder / "novelty.sqlite-journal").stat().st_size > 0
        die()

    def created(db, **about):  # type: ignore[no-untyped-def]
        create(db, **about)
        die()

    if point == "half of the embeddings":
        AppendedRows.append = half  # type: ignore[method-assign]
    elif point == "embeddings":
        AppendedRows.append = whole  # type: ignore[method-assign]
    elif point == "rows":
        store_tables.insert_pictures = inserted
    elif point == "tables":
        store_tables.create_tables = created
    store = open_store(folder)
    first = len(store)
    store.add(*pictures(list(range(first, first + 10 * CALL))))
    die()


if __name__ == "__main__":
    place, what = Path(sys.argv[1]), sys.argv[2]
    if what == "for ever":
        add_for_ever(open_store(place))
    elif what == "overlapping":
        add_overlapping(open_store(place), int(sys.argv[3]))
    else:
        die_at(what, place)
