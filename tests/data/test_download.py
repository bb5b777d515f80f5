"""Downloads from a real server on loopback: whatever it does, the file is right or absent; no byte is asked twice."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from clipkit.data.checksums import Checksum
from clipkit.data.download import download, through_mirror
from clipkit.errors import UserError
from file_server import File, FileServer, serving

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
OTHER = random.Random(1).randbytes(1_000_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as one:
        yield one


def serve(server: FileServer, **behaviour: object) -> str:
    server.files["/a/pictures.zip"] = File(**{"content": CONTENT, **behaviour})  # type: ignore[arg-type]
    return f"{server.address}/a/pictures.zip"


def leave_a_part(server: FileServer, target: Path, bytes_: int = 400_000, **behaviour: object) -> str:
    """An earlier call that got that far before the server went away."""
    url = serve(server, cut=[bytes_], **behaviour)
    with pytest.raises(UserError, match="What has arrived is kept"):
        download(url, target, retries=0)
    assert not target.exists()
    assert (target.parent / "pictures.zip.part").stat().st_size == bytes_
    server.log.clear()
    return url


def only_the_file(target: Path, content: bytes = CONTENT) -> bool:
    return target.read_bytes() == content and sorted(p.name for p in target.parent.iterdir()) == [target.name]


def test_a_file_arrives_whole_and_nothing_else_is_left(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    target = tmp_path / "new" / "folder" / "pictures.zip"
    download(serve(server), target, checksum=SHA256, size=len(CONTENT), progress=lambda *what: told.append(what))
    assert only_the_file(target)
    assert told[0][0] == "pictures.zip, MB"
    assert all(done <= total for _, done, total in told)
    download(serve(server), target, checksum=SHA256)
    assert len(server.log) == 1, "a file that is there is not asked for"


def test_an_empty_file_is_a_file(server: FileServer, tmp_path: Path) -> None:
    download(serve(server, content=b""), tmp_path / "empty")
    assert only_the_file(tmp_path / "empty", b"")


@pytest.mark.parametrize("length", [None, -1])
def test_a_connection_that_breaks_again_and_again_is_taken_up_where_it_broke(
    server: FileServer, tmp_path: Path, length: int | None
) -> None:
    target = tmp_path / "pictures.zip"
    url = serve(server, cut=[300_000, 1, 200_000, 0, 0, 100_000], length=length)
    if length is None:
        download(url, target, checksum=SHA256, retries=3, wait=0.01)
        assert sum(seen.sent for seen in server.log) == len(CONTENT), "each byte was sent once"
        assert [seen.range for seen in server.log[:3]] == [None, "bytes=300000-", "bytes=300001-"]
    else:  # without a length, what came last may be lost with the connection
        download(url, target, checksum=SHA256, retries=6, wait=0.01)
    assert only_the_file(target)


def test_a_later_call_continues_and_asks_only_for_the_rest(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    url = leave_a_part(server, target)
    download(url, target)
    assert only_the_file(target)
    assert [(seen.range, seen.sent) for seen in server.log] == [("bytes=400000-", 600_000)]


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    url = leave_a_part(server, target, ranges=False)
    download(url, target, checksum=SHA256)
    assert only_the_file(target)
    assert [(seen.status, seen.sent) for seen in server.log] == [(200, 1_000_000)]


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("new", [OTHER, OTHER[:700_000], OTHER[:100]])
def test_a_part_of_another_version_is_never_continued(
    server: FileServer, tmp_path: Path, if_range: bool, new: bytes
) -> None:
    """Whether or not the server compares versions itself; without a checksum that would notice."""
    target = tmp_path / "pictures.zip"
    leave_a_part(server, target)
    download(serve(server, content=new, if_range=if_range), target)
    assert only_the_file(target, new)


def test_without_a_version_a_part_is_continued_only_under_a_checksum(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    url = leave_a_part(server, target, validators=False)
    download(url, target, checksum=SHA256)
    assert server.log[0].range == "bytes=400000-"
    target.unlink()
    leave_a_part(server, target, validators=False)
    download(serve(server, content=OTHER, validators=False), target)
    assert server.log[0].range is None
    assert only_the_file(target, OTHER)


def test_a_part_that_is_longer_than_the_file_is_dropped(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    (tmp_path / "pictures.zip.part").write_bytes(OTHER + OTHER)
    download(serve(server), target, checksum=SHA256, wait=0.01)
    assert only_the_file(target)


def test_a_wrong_checksum_removes_what_came_and_says_both(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    with pytest.raises(UserError) as caught:
        download(serve(server, content=OTHER), target, checksum=SHA256)
    for part in (SHA256.value, hashlib.sha256(OTHER).hexdigest(), "/a/pictures.zip", "removed"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_length_than_published_is_refused_before_anything_is_fetched(
    server: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="1,000,000 bytes, and 1,000,001 were published"):
        download(serve(server), tmp_path / "pictures.zip", size=1_000_001)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_promises_more_than_it_sends_is_noticed(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    with pytest.raises(UserError, match="without a further byte"):
        download(serve(server, length=1_000_500, ranges=False), target, retries=2, wait=0.01)
    assert not target.exists()


def test_a_file_that_is_there_and_differs_is_kept(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "pictures.zip"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match="Move it away"):
        download(serve(server), target, checksum=SHA256)
    assert target.read_bytes() == b"precious"
    assert server.log == []


def test_trouble_that_passes_is_waited_for(server: FileServer, tmp_path: Path) -> None:
    said: list[str] = []
    trouble = [(500, {}), (503, {}), (502, {"Retry-After": "0"})]
    download(serve(server, trouble=trouble), tmp_path / "pictures.zip", wait=0.01, say=said.append)
    assert only_the_file(tmp_path / "pictures.zip")
    assert len(said) == 3
    assert "500" in said[0]


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_obeyed(server: FileServer, tmp_path: Path, date: bool) -> None:
    after = formatdate(time.time() + 2, usegmt=True) if date else "1"
    start = time.monotonic()
    download(serve(server, trouble=[(429, {"Retry-After": after})]), tmp_path / "pictures.zip", wait=0.01)
    assert time.monotonic() - start > (0.5 if date else 1.0)
    assert only_the_file(tmp_path / "pictures.zip")


def test_a_long_wait_is_left_to_the_person(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="60 minutes"):
        download(serve(server, trouble=[(429, {"Retry-After": "3600"})]), tmp_path / "pictures.zip")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_does_not_pass_is_said_at_once(server: FileServer, tmp_path: Path, status: int) -> None:
    with pytest.raises(UserError, match=f"the server says {status} "):
        download(serve(server, trouble=[(status, {})]), tmp_path / "pictures.zip")
    assert len(server.log) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_or_silent_is_said(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, hold=100)
    with pytest.raises(UserError, match="did not answer in time"):
        download(url, tmp_path / "pictures.zip", timeout=0.2, retries=1, wait=0.01)
    with serving() as gone:
        address = gone.address
    with pytest.raises(UserError, match="cannot be reached"):
        download(f"{address}/x.zip", tmp_path / "x.zip", retries=1, wait=0.01)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a.zip", "a.zip", "http://", "file:///etc/passwd"])
def test_no_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no address"):
        download(url, tmp_path / "a.zip")


def test_a_disk_that_is_too_small_is_noticed_before(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, length=10**15)
    with pytest.raises(UserError, match=r"1,000,000\.0 GB are still to come"):
        download(url, tmp_path / "pictures.zip")
    with pytest.raises(UserError, match=r"1,000,000\.0 GB to unpack it"):
        download(serve(server), tmp_path / "pictures.zip", room=10**15)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
def test_a_disk_that_fills_up_on_the_way_is_said_and_the_part_is_continued(server: FileServer, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=500k tmpfs {small} 2>/dev/null") != 0:
        pytest.skip("this machine mounts nothing")
    try:
        with pytest.raises(UserError, match=r"the disk is full.*the same command again"):
            download(serve(server, length=-1), small / "pictures.zip")
        assert os.system(f"mount -o remount,size=3m {small}") == 0
        download(serve(server), small / "pictures.zip", checksum=SHA256)
        assert only_the_file(small / "pictures.zip")
        assert server.log[-1].sent < len(CONTENT)
    finally:
        os.system(f"umount {small}")


def test_a_folder_that_cannot_be_written_is_said(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        download(serve(server), tmp_path / "file" / "pictures.zip")


def test_a_mirror_takes_the_place_of_the_server_alone() -> None:
    url = "https://github.com/a/b.zip?raw=1"
    assert through_mirror(url, None) == url
    assert through_mirror(url, "http://127.0.0.1:80") == "http://127.0.0.1:80/a/b.zip?raw=1"
    assert through_mirror(url, "https://my.mirror/files/") == "https://my.mirror/files/a/b.zip?raw=1"
    with pytest.raises(UserError, match=r"mirror=my\.mirror"):
        through_mirror(url, "my.mirror")
