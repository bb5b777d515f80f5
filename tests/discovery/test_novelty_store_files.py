"""The growing store loses nothing: killed writers, two at once, full and read-only disks, damaged files."""

import errno
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from store_writer import CALL, OVERLAP, embeds_of, filled, name_of, numbers_in, open_store, pictures

from clipkit.discovery.store import NoveltyStore
from clipkit.errors import UserError

WRITER = Path(__file__).with_name("store_writer.py")


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses to write beyond that, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=256k tmpfs {place} 2>/dev/null") != 0:
        pytest.skip("this machine mounts nothing")
    yield place
    os.system(f"umount {place}")


def writer(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, str(WRITER), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_writer_leaves_the_finished_calls_and_each_picture_its_own_embedding(tmp_path: Path) -> None:
    """Eight kills at random moments; what was said to be stored is there, and of the call under way all or nothing."""
    chance = random.Random(0)
    for attempt in range(8):
        process = writer(tmp_path, "for ever")
        assert process.stdout is not None
        for _ in range(1 + attempt % 2):
            said = int(process.stdout.readline())
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        said = max([said, *map(int, process.communicate()[0].split())])
        assert process.returncode == -signal.SIGKILL
        store = open_store(tmp_path)
        assert len(store) - said in (0, CALL)
        assert numbers_in(store) == list(range(len(store)))
    assert store.add(*pictures([10**5])) == 1


@pytest.mark.parametrize("point", ["half of the embeddings", "embeddings", "rows", "end", "tables"])
def test_killed_at_any_step_of_a_call(point: str, tmp_path: Path) -> None:
    count = 0 if point == "tables" else len(filled(tmp_path))
    process = writer(tmp_path, point)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    store = open_store(tmp_path)
    assert numbers_in(store) == list(range(count + 10 * CALL if point == "end" else count))
    assert store.add(*pictures([10**5])) == 1


def test_two_writers_at_once_store_each_picture_once(tmp_path: Path) -> None:
    both = [writer(tmp_path / "novel", "overlapping", seed) for seed in "01"]  # they also make the store at once
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    new = [int(process.communicate()[0]) for process in both]
    assert sum(new) == OVERLAP
    assert min(new) > 0
    assert sorted(numbers_in(open_store(tmp_path / "novel"))) == list(range(OVERLAP))


def test_a_writer_waits_so_long_for_another_and_a_reader_not_at_all(tmp_path: Path) -> None:
    filled(tmp_path)
    store = NoveltyStore.existing(tmp_path, timeout=0.2)
    with store.files.embeds.file.open("ab") as file:
        file.write(b"being written")
    with FileLock(tmp_path / "novelty.lock"):
        with pytest.raises(UserError, match=r"another process has been writing for 0\.2 s"):
            store.add(*pictures([30]))
        assert len(open_store(tmp_path).novel()) == 10
        np.testing.assert_array_equal(store.embeds([3]), embeds_of([name_of(3)]))
        assert store.files.embeds.goes_beyond(20)  # what another one is writing is not cut
    with closing(sqlite3.connect(tmp_path / "novelty.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="database is locked"):
            store.add(*pictures([30]))
    assert store.add(*pictures([30])) == 1
    assert numbers_in(store) == [*range(20), 30]


def test_embeddings_that_are_too_long_are_cut_and_ones_that_are_too_short_are_said(tmp_path: Path) -> None:
    store = filled(tmp_path)
    file = tmp_path / "embeds.f32"
    with file.open("ab") as grown:
        grown.write(os.urandom(1001))
    assert numbers_in(open_store(tmp_path)) == list(range(20))
    with file.open("ab") as grown:
        grown.write(os.urandom(1001))
    assert store.add(*pictures([20])) == 1  # opened before that happened
    assert numbers_in(store) == list(range(21))
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    for use in (lambda: open_store(tmp_path), lambda: store.embeds([0]), lambda: store.add(*pictures([21]))):
        with pytest.raises(UserError, match="holds 20 of the 21 embeddings"):
            use()
    file.write_bytes(whole)
    assert numbers_in(open_store(tmp_path)) == list(range(21))


@pytest.mark.parametrize("damage", ["garbage", "no header", "a page", "cut short", "gone", "empty", "another schema"])
def test_a_damaged_database_is_said_and_the_embeddings_are_left_alone(damage: str, tmp_path: Path) -> None:
    store = filled(tmp_path, 2000)
    embeds, content = store.files.embeds.file, store.files.database.read_bytes()
    with embeds.open("ab") as file:
        file.write(os.urandom(1001))
    before = embeds.read_bytes()
    middle = len(content) // 2 // 4096 * 4096
    damaged = {
        "garbage": os.urandom(len(content)),
        "no header": bytes(100) + content[100:],
        "a page": content[:middle] + bytes(4096) + content[middle + 4096 :],
        "cut short": content[:middle],
        "empty": b"",
    }
    if damage == "gone":
        store.files.database.unlink()
    elif damage == "another schema":
        with closing(sqlite3.connect(store.files.database)) as db:
            db.execute("PRAGMA user_version=7")
    else:
        store.files.database.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"damaged|is gone|schema version 7"):
        open_store(tmp_path)
    assert embeds.read_bytes() == before
    store.files.database.write_bytes(content)
    assert numbers_in(open_store(tmp_path)) == list(range(2000))


@pytest.mark.parametrize("size", [40_000, 600_000])
def test_a_disk_that_is_full_adds_nothing_and_loses_nothing(size: int, tmp_path: Path) -> None:
    """The first limit is met by the embeddings, the second by the database."""
    store = filled(tmp_path)
    scored, embeds = pictures(list(range(100, 1100)))
    if size > embeds.nbytes:
        scored = [replace(one, label="a long label " * 100) for one in scored]
    with files_no_longer_than(size), pytest.raises(UserError, match=r"Free some space|Is the disk full"):
        store.add(scored, embeds)
    assert numbers_in(store) == list(range(20))  # that no bytes are left over, too
    assert store.add(scored, embeds) == 1000
    assert numbers_in(open_store(tmp_path)) == [*range(20), *range(100, 1100)]


def test_a_small_disk_takes_what_fits_and_is_readable_when_it_is_read_only(small_disk: Path) -> None:
    store, count = open_store(small_disk), 0
    with pytest.raises(UserError, match=r"Free some space|Is the disk full"):  # noqa: PT012 – one of the calls
        while True:
            store.add(*pictures(list(range(count, count + CALL))))
            count += CALL
    assert count > CALL
    assert numbers_in(open_store(small_disk)) == list(range(count))
    assert os.system(f"mount -o remount,ro {small_disk}") == 0
    store = open_store(small_disk)
    assert numbers_in(store) == list(range(count))
    with pytest.raises(UserError, match=f"{os.strerror(errno.EROFS)}.*may write to"):
        store.add(*pictures([10**5]))
