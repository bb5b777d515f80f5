"""One part of a data set: whatever stops it, the next call goes on, and a complete one is left alone."""

import shutil
import threading
import time
from collections.abc import Iterator, Sized
from pathlib import Path

import pytest
from test_unpacking import FILES, contents, zipped

from clipkit.data.checksums import Checksum
from clipkit.data.fetching import WORK, Item, Outcome, fetch_item, is_complete
from clipkit.errors import UserError
from file_server import File, FileServer, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with serving() as one:
        one.files["/set.zip"] = File(zipped(tmp_path / "made.zip", FILES).read_bytes())
        yield one


def item(server: FileServer, **values: object) -> Item:
    return Item(**{"name": "set.zip", "url": f"{server.address}/set.zip", "gives": ("pictures",), **values})  # type: ignore[arg-type]


def visible(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(root).items() if not name.startswith(WORK)}


def test_a_second_call_asks_the_server_nothing(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert not is_complete(item(server), root)
    first = fetch_item(item(server), root)
    assert first == Outcome("fetched", {name: len(content) for name, content in FILES.items()})
    assert visible(root) == FILES, "the archive is gone, and nothing else is there"
    assert is_complete(item(server), root)
    assert fetch_item(item(server), root).state == "complete"
    assert len(server.log) == 1


def test_archives_are_kept_on_demand_and_never_removed_if_a_person_put_them_there(
    server: FileServer, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    fetch_item(item(server), root, keep_archives=True)
    assert set(visible(root)) == {*FILES, "set.zip"}
    own = tmp_path / "own"
    own.mkdir()
    (own / "set.zip").write_bytes(server.files["/set.zip"].content)
    fetch_item(item(server), own)
    assert set(visible(own)) == {*FILES, "set.zip"}
    assert len(server.log) == 1


def test_what_nobody_hands_on_is_taken_from_the_folder_or_called_absent(server: FileServer, tmp_path: Path) -> None:
    root, by_hand = tmp_path / "root", item(server, url=None)
    assert fetch_item(by_hand, root).state == "absent"
    (root / "set.zip").write_bytes(server.files["/set.zip"].content)
    assert fetch_item(by_hand, root).state == "fetched"
    assert set(visible(root)) == {*FILES, "set.zip"}
    (root / "set.zip").write_bytes(b"another file")
    other = item(server, url=None, checksum=Checksum("md5", "0" * 32))
    with pytest.raises(UserError, match="Move it away"):
        fetch_item(other, root)


def test_files_that_are_lost_are_fetched_again_and_the_others_kept(server: FileServer, tmp_path: Path) -> None:
    root, said = tmp_path / "root", list[str]()
    fetch_item(item(server), root)
    (root / "pictures" / "a.jpg").unlink()
    kept = (root / "list.txt").stat().st_ino
    assert fetch_item(item(server), root, say=said.append).state == "fetched"
    assert visible(root) == FILES
    assert (root / "list.txt").stat().st_ino == kept
    assert "1 of 3 files of set.zip are gone or changed (pictures/a.jpg)" in said[0]


def test_what_somebody_else_put_there_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    root, said = tmp_path / "root", list[str]()
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "a.jpg").write_bytes(b"own")
    assert fetch_item(item(server), root, say=said.append).state == "left"
    assert "overwrite=true" in said[0]
    with pytest.raises(UserError, match=r"a\.jpg"):
        fetch_item(item(server, gives=()), root)
    assert visible(root).pop("pictures/a.jpg") == b"own"
    assert fetch_item(item(server), root, overwrite=True).state == "fetched"
    assert visible(root) == FILES


@pytest.mark.parametrize("moved", [0, 1])
def test_a_stop_between_unpacking_and_moving_is_made_good(server: FileServer, tmp_path: Path, moved: int) -> None:
    """As a kill leaves it: complete beside the place, and some of it in place already."""
    root = tmp_path / "root"
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "a.jpg").write_bytes(b"a" * 4999 + b"b")  # stops the move
    with pytest.raises(UserError, match="differ"):
        fetch_item(item(server, gives=()), root)
    assert (root / WORK / "set.zip.ready").is_dir()
    shutil.rmtree(root / "pictures")
    if moved:
        (root / WORK / "set.zip.ready" / "list.txt").rename(root / "list.txt")
    assert fetch_item(item(server, gives=()), root).state == "fetched"
    assert visible(root) == FILES
    assert len(server.log) == 1, "nothing is downloaded or unpacked anew"


def test_half_an_unpacked_archive_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / WORK / "set.zip.unpacking").mkdir(parents=True)
    (root / WORK / "set.zip.unpacking" / "half.jpg").write_bytes(b"half")
    fetch_item(item(server), root)
    assert visible(root) == FILES
    assert sorted(path.suffix for path in (root / WORK).iterdir()) == [".json", ".lock"]


def test_a_new_version_in_the_configuration_is_fetched(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    fetch_item(item(server, members=("list.txt",)), root)
    assert set(visible(root)) == {"list.txt"}
    fetch_item(item(server), root)
    assert visible(root) == FILES


def test_a_damaged_archive_is_removed_if_it_came_from_the_server(server: FileServer, tmp_path: Path) -> None:
    root, good = tmp_path / "root", server.files["/set.zip"]
    server.files["/set.zip"] = File(b"<html>please log in</html>")
    with pytest.raises(UserError, match=r"/set\.zip sent is a web page.*removed"):
        fetch_item(item(server), root)
    assert visible(root) == {}
    assert not list((root / WORK).glob("*.unpacking"))
    server.files["/set.zip"] = good
    fetch_item(item(server), root)
    assert visible(root) == FILES
    own = tmp_path / "own"
    own.mkdir()
    (own / "set.zip").write_bytes(good.content[:-30])
    with pytest.raises(UserError, match="no zip or tar archive"):
        fetch_item(item(server), own)
    assert set(visible(own)) == {"set.zip"}


def wait_for(something: Sized) -> None:
    deadline = time.monotonic() + 60
    while not something:
        assert time.monotonic() < deadline, "nothing came in a minute"
        time.sleep(0.01)


def test_of_two_at_once_the_second_waits_and_finds_it_done(server: FileServer, tmp_path: Path) -> None:
    root, said, outcomes = tmp_path / "root", list[str](), list[Outcome]()
    server.files["/set.zip"].hold = 100
    first = threading.Thread(target=lambda: outcomes.append(fetch_item(item(server), root)))
    first.start()
    wait_for(server.log)
    second = threading.Thread(target=lambda: outcomes.append(fetch_item(item(server), root, say=said.append)))
    second.start()
    wait_for(said)
    server.files["/set.zip"].release.set()
    first.join(30)
    second.join(30)
    assert [outcome.state for outcome in outcomes] == ["fetched", "complete"]
    assert "another process is at work here" in said[0]
    assert visible(root) == FILES
    assert len(server.log) == 1


def test_a_single_file_needs_no_archive(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    outcome = fetch_item(item(server, unpack=False, into="deep/er"), root)
    assert set(outcome.files) == {"deep/er/set.zip"}
    assert fetch_item(item(server, unpack=False, into="deep/er"), root).state == "complete"


def test_a_root_that_is_a_file_is_said(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("no folder")
    with pytest.raises(UserError, match=r"data\.root=.*cannot be written"):
        fetch_item(item(server), tmp_path / "root")
