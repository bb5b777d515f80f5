"""The packed store: the same pictures, found by content, never half-used."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data.images import FolderReader
from clipkit.data.opening import decode_crop
from clipkit.data.packing import PackedStore, find_store, pack
from clipkit.data.records import Record, Records
from clipkit.errors import UserError
from conftest import ROOT
from photos import photo

SIZES = [(160, 120), (120, 160), (64, 64), (40, 90), (700, 500)]


def write(folder: Path, count: int = 10) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{number:03d}.{('jpg', 'png')[number % 2]}" for number in range(count)]
    for number, name in enumerate(names):
        photo(*SIZES[number % len(SIZES)], seed=number).save(folder / name)
    return names


def table(folder: Path, names: list[str]) -> Records:
    return Records.from_records([Record(name, (name,)) for name in names], reader=FolderReader(folder), name="set")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return table(tmp_path / "pictures", write(tmp_path / "pictures"))


@pytest.mark.parametrize(("form", "tolerance"), [("raw", 0.0), ("jpeg", 2.0)])
def test_a_packed_picture_is_the_picture_with_its_shorter_side_at_the_size(
    records: Records, tmp_path: Path, form: Any, tolerance: float
) -> None:
    store, broken = pack(records, tmp_path / "packed", size=64, format=form)
    assert broken == []
    assert len(store) == len(records)
    for row, place in enumerate(store.rows(records.picture_hashes).tolist()):
        found, original = store.image(place), records.reader(records.image_name(row))
        shorter = min(original.size)
        if shorter > 64 and max(original.size) < 500:
            original = original.resize(
                tuple(max(64, round(side * 64 / shorter)) for side in original.size),  # type: ignore[arg-type]
                Image.Resampling.BICUBIC,
            )
            assert found.size == original.size
            difference = np.abs(np.asarray(found).astype(int) - np.asarray(original).astype(int))
            assert difference.mean() <= tolerance
        elif shorter <= 64:
            assert found.size == original.size  # never made larger
        else:
            assert min(found.size) == 64


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_a_crop_of_the_store_is_a_crop_of_its_picture(records: Records, tmp_path: Path, form: Any) -> None:
    store, _ = pack(records, tmp_path / "packed", size=64, format=form)

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        return 3, 2, height - 5, width - 4

    for row in range(len(store)):
        image = store.image(row)
        buffer = tmp_path / "one.png"
        image.save(buffer)
        expected = decode_crop(buffer.read_bytes(), choose, 32)
        assert (store.open_crop(row, choose, 32).int() - expected.int()).abs().max() <= (0 if form == "raw" else 3)


def test_a_changed_picture_is_not_found_and_others_are(records: Records, tmp_path: Path) -> None:
    store, _ = pack(records, tmp_path / "packed", size=64)
    names = records.table["image"].to_pylist()
    time.sleep(0.01)
    photo(80, 80, seed=99).save(tmp_path / "pictures" / names[3])
    changed = table(tmp_path / "pictures", names)
    rows = store.rows(changed.picture_hashes)
    assert [index for index, row in enumerate(rows) if row < 0] == [3]
    part = changed.select("train").without([0, 1])
    assert (store.rows(part.picture_hashes) >= 0).sum() == len(part) - 1  # any part of the data uses it


def test_the_store_with_most_pictures_is_chosen_and_too_small_ones_are_said(records: Records, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    assert find_store(folder, records.picture_hashes, size=32) == (None, [])
    small, _ = pack(records, folder, size=16)
    some, _ = pack(records.without([0]), folder, size=48)
    assert len(some) == len(records) - 1
    large, _ = pack(records, folder, size=64)
    found, notes = find_store(folder, records.picture_hashes, size=32)
    assert found is not None
    assert found.place == large.place
    assert [str(small.place) in note and "16 pixels" in note for note in notes] == [True]
    assert find_store(folder, np.array([1, 2, 3], np.uint64), size=32) == (None, [])


def test_broken_pictures_are_left_out_and_named(records: Records, tmp_path: Path) -> None:
    names = records.table["image"].to_pylist()
    (tmp_path / "pictures" / names[2]).write_text("nothing")
    (tmp_path / "pictures" / names[5]).unlink()
    now = table(tmp_path / "pictures", names)
    store, broken = pack(now, tmp_path / "packed", size=64)
    assert [name for name, _ in broken] == [names[2], names[5]]
    assert (store.rows(now.picture_hashes) < 0).nonzero()[0].tolist() == [2, 5]


def test_a_store_that_is_there_is_not_packed_again(records: Records, tmp_path: Path) -> None:
    first, _ = pack(records, tmp_path / "packed", size=64)
    stamp = (first.place / "pixels.bin").stat().st_mtime_ns
    calls: list[int] = []
    pack(records, tmp_path / "packed", size=64, on_progress=lambda what, done, total: calls.append(done))
    assert not calls
    pack(records, tmp_path / "packed", size=64, overwrite=True)
    assert (first.place / "pixels.bin").stat().st_mtime_ns != stamp


@pytest.mark.parametrize("harm", ["cut", "json", "missing"])
def test_a_damaged_store_is_said_and_not_used(records: Records, tmp_path: Path, harm: str) -> None:
    store, _ = pack(records, tmp_path / "packed", size=64)
    if harm == "cut":
        with (store.place / "pixels.bin").open("r+b") as file:
            file.truncate(1000)
    elif harm == "json":
        (store.place / "pack.json").write_text("{")
    else:
        (store.place / "hashes.npy").unlink()
    with pytest.raises(UserError, match="pack again"):
        PackedStore(store.place)
    found, notes = find_store(tmp_path / "packed", records.picture_hashes, size=32)
    assert found is None
    assert len(notes) == 1


def begin(place: Path, names: list[str]) -> str:
    """How a process of its own gets the records."""
    return (
        "import sys, time\nsys.path[:0] = ['tests', 'tests/data']\n"
        "from pathlib import Path\nfrom test_packing import table, pack\n"
        f"records = table(Path({str(place / 'pictures')!r}), {names!r})\n"
    )


def test_a_packing_process_that_is_killed_leaves_nothing_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    names = write(tmp_path / "pictures", 60)
    code = begin(tmp_path, names) + (
        "def slowly(what, done, total):\n    print(done, flush=True)\n    time.sleep(0.05)\n"
        f"pack(records, {str(tmp_path / 'packed')!r}, size=64, on_progress=slowly)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and int(line) < 20:
        pass
    assert list((tmp_path / "packed").glob(".*.part*"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    records = table(tmp_path / "pictures", names)
    assert find_store(tmp_path / "packed", records.picture_hashes, size=32) == (None, [])
    store, _ = pack(records, tmp_path / "packed", size=64)
    assert [path.name for path in (tmp_path / "packed").iterdir()] == [store.place.name]


def test_two_that_pack_at_once_leave_one_whole_store(tmp_path: Path) -> None:
    names = write(tmp_path / "pictures", 30)
    code = begin(tmp_path, names) + (
        "sys.stdin.readline()\n"
        f"store, broken = pack(records, {str(tmp_path / 'packed')!r}, size=64)\nprint(len(store), broken)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    time.sleep(6)  # both have imported torch and wait
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].split() for process in both] == [["30", "[]"]] * 2
    assert len(list((tmp_path / "packed").iterdir())) == 1


def test_a_disk_that_is_full_is_said_and_leaves_nothing(
    records: Records, tmp_path: Path, limited: Callable[[int], Any]
) -> None:
    with limited(20_000), pytest.raises(UserError, match=r"could not be packed .* cache_dir=DIR"):
        pack(records, tmp_path / "packed", size=64)
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.fixture
def limited() -> Callable[[int], Any]:
    """A context in which no file grows beyond some bytes: writing on fails as on a full disk."""
    import resource
    from contextlib import contextmanager

    @contextmanager
    def limit(size: int) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


def test_a_store_reads_the_same_after_a_fork(records: Records, tmp_path: Path) -> None:
    store, _ = pack(records, tmp_path / "packed", size=64)
    expected = store.image(0).tobytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"1" if store.image(0).tobytes() == expected else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    assert torch.equal(store._bytes(0), PackedStore(store.place)._bytes(0))
