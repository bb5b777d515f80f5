"""Pictures inside archives: the right bytes for each name, in every process, and a reason for what is useless."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from clipkit.data.tar_reader import TarReader, index_tars
from clipkit.errors import UserError
from shard_files import picture, sample, write_shards, write_tar


def indexed(*paths: Path) -> tuple[list[tuple[str, tuple[str, ...]]], TarReader]:
    return index_tars(paths, [path.name for path in paths], caption_key="caption")


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    write_shards(tmp_path, [5, 1, 4])
    return sorted(tmp_path.glob("*.tar"))


def test_each_sample_is_there_with_its_caption_and_its_own_picture(three: list[Path]) -> None:
    found, reader = indexed(*three)
    assert [captions for _, captions in found] == [(f"picture number {i}",) for i in range(10)]
    assert found[5][0] == "00001.tar#000000005.jpg"
    assert [reader.read(name) for name, _ in found] == [picture(i) for i in range(10)]
    assert reader(found[3][0]).size == (8, 8)
    assert reader.read(found[9][0]) == picture(9)  # in any order
    assert reader.read(found[0][0]) == picture(0)


def read_all(job: tuple[TarReader, list[str]]) -> list[bytes]:
    return [job[0].read(name) for name in job[1]]


def test_other_processes_and_threads_read_the_same(three: list[Path]) -> None:
    found, reader = indexed(*three)
    names = [name for name, _ in found]
    expected = [picture(i) for i in range(10)]
    assert read_all((reader, names)) == expected  # its files are open now
    with get_context("fork").Pool(2) as pool:
        assert pool.map(read_all, [(reader, names)] * 4) == [expected] * 4
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(reader.read, names * 20)) == expected * 20
    assert read_all((pickle.loads(pickle.dumps(reader)), names)) == expected


def test_more_archives_than_files_may_stay_open(tmp_path: Path) -> None:
    write_shards(tmp_path, [1] * 40)
    found, reader = indexed(*sorted(tmp_path.glob("*.tar")))
    for order in (range(40), range(39, -1, -1)):
        assert [reader.read(found[i][0]) for i in order] == [picture(i) for i in order]


def test_the_stamp_changes_with_the_archive(three: list[Path]) -> None:
    found, reader = indexed(*three)
    before = [reader.stamp(name) for name, _ in found]
    assert len(set(before)) == 10
    write_shards(three[0].parent, [6])
    after = [reader.stamp(name) for name, _ in found]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False] * 5 + [True] * 5
    three[1].unlink()
    assert reader.stamp(found[5][0]) == "missing"
    assert reader.stamp("00000.tar#no.jpg") == "missing"


def test_useless_samples_are_there_and_say_why(tmp_path: Path) -> None:
    files = [*sample(1), ("a.jpg", picture(2)), ("b.txt", b"alone"), ("c.jpg", picture(3)), ("c.txt", b"\xff")]
    files += [("d.json", json.dumps({"caption": "no picture"}).encode()), *sample(4), ("e.png", b""), ("e.txt", b"x")]
    path = write_tar(tmp_path / "s.tar", [*files, *sample(1)])
    found, reader = indexed(path)
    reasons = {}
    for name, _ in found:
        try:
            reader(name)
        except OSError as error:
            reasons[name] = str(error)
    assert [name for name, _ in found if name not in reasons] == ["s.tar#000000001.jpg", "s.tar#000000004.jpg"]
    assert "no caption" in reasons["s.tar#a.jpg"]
    assert "no picture" in reasons["s.tar#b"]
    assert "not UTF-8" in reasons["s.tar#c.jpg"]
    assert "no picture" in reasons["s.tar#d"]
    assert "twice" in reasons["s.tar#000000001.jpg again"]
    assert "s.tar#e.png" in reasons


def test_names_are_never_paths(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    path = write_tar(tmp_path / "in/s.tar", [("../secret.jpg", picture(2)), ("../secret.txt", b"x")])
    found, reader = indexed(path)
    assert [reader.read(name) for name, _ in found] == [picture(2)]
    with pytest.raises(FileNotFoundError):
        reader.read(str(tmp_path / "secret.jpg"))


def test_a_missing_or_damaged_archive_is_refused_by_name(three: list[Path]) -> None:
    three[1].write_bytes(three[1].read_bytes()[:1500])
    with pytest.raises(UserError, match=r"00001.tar: the archive ends after 1,500 bytes.*must be whole"):
        indexed(*three)
    three[1].unlink()
    with pytest.raises(UserError, match=r"00001.tar: no such file"):
        indexed(*three)


def test_an_archive_that_shrank_since_is_an_oserror(three: list[Path]) -> None:
    found, reader = indexed(*three)
    three[2].write_bytes(three[2].read_bytes()[:600])
    with pytest.raises(OSError, match=r"00002\.tar ends before"):
        reader.read(found[9][0])


def test_the_index_is_a_few_bytes_a_picture() -> None:
    """Worker processes share arrays; a dict of names would be copied page by page."""
    names = [f"s.tar#{i}.jpg" for i in range(50_000)]
    reader = TarReader([Path("s.tar")], names, np.zeros((50_000, 3), np.int64), {})
    assert reader.hashes.nbytes + reader.places.nbytes == 32 * 50_000
    assert len(pickle.dumps(reader)) < 40 * 50_000
