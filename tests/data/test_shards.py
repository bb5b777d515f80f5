"""Naming shards in every way, opening them on a real server that fails in the ways that servers do, copies."""

import itertools
from pathlib import Path

import pytest

from clipkit.data.shards import check_opener, copy_shard, list_shards, open_shard, short_names
from clipkit.errors import UserError
from shard_files import serving, write_shards


def touch(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_a_folder_gives_its_archives_in_order(tmp_path: Path) -> None:
    expected = touch(tmp_path, "00000.tar", "00001.tar", "00010.tar")
    touch(tmp_path, "00000.parquet", "00000_stats.json", ".hidden.tar")
    assert list_shards(tmp_path) == expected


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    touch(tmp_path / "train", "0.tar")
    with pytest.raises(UserError, match=r"data.val_root=.*no \*.tar.*there are some in train"):
        list_shards(tmp_path, key="data.val_root")


def test_braces_count_and_list(tmp_path: Path) -> None:
    touch(tmp_path, "008.tar")
    found = list_shards(f"{tmp_path}/{{008..011}}.tar")
    assert found == [f"{tmp_path}/{i}.tar" for i in ("008", "009", "010", "011")]
    urls = list_shards("https://host/{a,b}/{9..11}.tar?key=1")
    assert urls == [f"https://host/{x}/{n}.tar?key=1" for x, n in itertools.product("ab", (9, 10, 11))]


def test_a_list_names_files_beside_it_and_urls(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a comment\n\nsub/a.tar\n/b.tar\ns3://bucket/{0..1}.tar\n")
    expected = [f"{tmp_path}/sub/a.tar", "/b.tar", "s3://bucket/0.tar", "s3://bucket/1.tar"]
    assert list_shards(f"@{tmp_path}/list.txt") == expected


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("/nowhere/at/all", "no such file or folder"),
        ("/nowhere/{0..3}.tar", r"no such file or folder \(/nowhere/0.tar\)"),
        ("https://host/{9..0}.tar", "no range"),
        ("https://host/{0..99999999999}.tar", "no range"),
        ("https://host/{0..9999}{0..9999}.tar", "more than anybody has"),
        ("https://host/{a,a}.tar", "named twice"),
        ("pipe:curl -s http://host/a.tar", "commands are not run"),
        ("@/nowhere/list.txt", "cannot be read: no such file"),
    ],
)
def test_wrong_names_are_refused(root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_shards(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no shards"),
        (b"a.tar\npipe:rm -rf /\n", "line 2"),
        (b"\xff\xfe", "cannot be read"),
        (b"@x", "line 1"),
    ],
)
def test_wrong_lists_are_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list_shards(f"@{tmp_path}/list.txt")


def test_names_do_not_depend_on_where_the_data_set_lies() -> None:
    assert short_names(["/a/b/0.tar", "/a/b/1.tar"]) == ["0.tar", "1.tar"]
    assert short_names(["/other/0.tar"]) == ["0.tar"]
    assert short_names(["/a/x/0.tar", "/a/y/0.tar"]) == ["x/0.tar", "y/0.tar"]
    assert short_names(["https://h/d/0.tar?token=1", "https://h/d/1.tar?token=2"]) == ["0.tar", "1.tar"]
    assert short_names([]) == []


def test_a_protocol_that_nothing_opens_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"nonsense://host/a\.tar cannot be opened"):
        check_opener("nonsense://host/a.tar")
    check_opener("/a/local/file.tar")


def test_a_server_gives_the_bytes_and_every_failure_is_an_oserror(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    with serving(tmp_path) as (address, faults, _):
        with open_shard(f"{address}/00000.tar") as file:
            assert b"".join(iter(lambda: file.read(1000), b"")) == (tmp_path / "00000.tar").read_bytes()
        with pytest.raises(FileNotFoundError):
            open_shard(f"{address}/00001.tar").read(1)
        faults["down 00000.tar"] = 100
        with pytest.raises(OSError, match="503"), open_shard(f"{address}/00000.tar") as file:
            file.read(1)
        faults.clear()
        faults["cut 00000.tar"] = 100
        with pytest.raises(OSError, match=r"."), open_shard(f"{address}/00000.tar") as file:
            b"".join(iter(lambda: file.read(1000), b""))
    with pytest.raises(OSError, match=r"."):
        open_shard(f"{address}/00000.tar").read(1)  # nobody is there any more


def test_a_copy_is_whole_kept_and_made_again_when_the_original_changes(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", [3])
    cache = tmp_path / "cache"
    with serving(tmp_path / "served") as (address, faults, asked):
        url = f"{address}/00000.tar"
        copy = copy_shard(url, cache)
        assert copy.read_bytes() == (tmp_path / "served/00000.tar").read_bytes()
        asked.clear()
        assert copy_shard(url, cache) == copy
        assert asked == []  # its size and date are asked for, not its bytes
        write_shards(tmp_path / "served", [30])
        again = copy_shard(url, cache)
        assert again.read_bytes() == (tmp_path / "served/00000.tar").read_bytes()
        faults["cut 00000.tar"] = 100
        write_shards(tmp_path / "served", [50])
        with pytest.raises(UserError, match="could not be copied"):
            copy_shard(url, cache)
        with pytest.raises(UserError, match=r"00009.tar could not be copied to .*: no such file"):
            copy_shard(f"{address}/00009.tar", cache)
    assert sorted(cache.iterdir()) == sorted({copy, again})


def test_no_room_for_a_copy_is_one_message(tmp_path: Path) -> None:
    write_shards(tmp_path / "served", [3])
    (tmp_path / "file").touch()
    with serving(tmp_path / "served") as (address, _, _), pytest.raises(UserError, match="could not be copied to"):
        copy_shard(f"{address}/00000.tar", tmp_path / "file" / "below")
