"""Archives from elsewhere: good ones come out as they went in, hostile and damaged ones leave nothing outside."""

import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.data.storing import files_below, put_in_place
from clipkit.data.unpacking import unpack
from clipkit.errors import UserError

FILES = {"pictures/a.jpg": b"a" * 5000, "pictures/deep/ä b.jpg": random.Random(0).randbytes(3000), "list.txt": b""}
NAMES_THAT_LEAVE = (
    "../evil", "a/../../evil", "/tmp/evil", "..\\evil", "a\\..\\..\\evil", "C:\\evil", "C:evil", "c:/evil",
    "\\\\host\\share\\evil", "..",
)  # fmt: skip


def zipped(file: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file


def tarred(file: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]  # any mode
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
    return file


def member(name: str, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def refused(archive: Path, *parts: str) -> str:
    """That it is refused, with its name and these words, and that nothing appears beside or below the folder."""
    folder = archive.parent / "one" / "two"
    before = {*archive.parent.iterdir()}
    with pytest.raises(UserError) as caught:
        unpack(archive, folder)
    message = str(caught.value)
    for part in (archive.name, *parts):
        assert part in message
    assert {*archive.parent.iterdir()} - before <= {archive.parent / "one"}
    assert files_below(archive.parent / "one") == {}
    assert not Path("/tmp/evil").exists()
    return message


WRITERS: list[Callable[[Path, dict[str, bytes]], Path]] = [
    zipped,
    lambda file, files: zipped(file, files, zipfile.ZIP_STORED),
    tarred,
    lambda file, files: tarred(file, files, "w"),
    lambda file, files: tarred(file, files, "w:xz"),
]


@pytest.mark.parametrize("write", WRITERS)
def test_files_come_out_as_they_went_in_whatever_the_archive_is_called(
    write: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    unpack(write(tmp_path / "data.bin", FILES), tmp_path / "out", progress=lambda _, *mb: told.append(mb))
    assert contents(tmp_path / "out") == FILES
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("write", [zipped, tarred])
def test_what_a_mac_adds_is_left_out(write: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path) -> None:
    mac = {"__MACOSX/pictures/._a.jpg": b"x", "pictures/._a.jpg": b"x", "pictures/.DS_Store": b"x", ".DS_Store": b"x"}
    unpack(write(tmp_path / "a", {**mac, **FILES}), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("write", [zipped, tarred])
def test_only_the_wanted_members_are_written(write: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path) -> None:
    archive = write(tmp_path / "a", FILES)
    unpack(archive, tmp_path / "out", members=["pictures/*.jpg"])
    assert set(contents(tmp_path / "out")) == {"pictures/a.jpg", "pictures/deep/ä b.jpg"}
    with pytest.raises(UserError, match=r"no file like captions\.json"):
        unpack(archive, tmp_path / "none", members=["captions.json"])


def test_an_archive_in_the_archive_is_unpacked_where_it_lies(tmp_path: Path) -> None:
    inner = tarred(tmp_path / "inner", FILES).read_bytes()
    archive = zipped(tmp_path / "outer.zip", {"set/inner.tar.gz": inner, "set/other.tar": b"not wanted"})
    unpack(archive, tmp_path / "out", members=["set/inner.tar.gz"], inner=["set/inner.tar.gz"])
    assert contents(tmp_path / "out") == {f"set/{name}": content for name, content in FILES.items()}


def test_links_in_a_tar_become_copies(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member("./x/a", size=3), io.BytesIO(b"one"))
        archive.addfile(member("x/soft", type=tarfile.SYMTYPE, linkname="a"))
        archive.addfile(member("y/soft", type=tarfile.SYMTYPE, linkname="../x/a"))
        archive.addfile(member("y/hard", type=tarfile.LNKTYPE, linkname="x/a"))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert contents(tmp_path / "out") == dict.fromkeys(("x/a", "x/soft", "y/soft", "y/hard"), b"one")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("write", [zipped, tarred])
@pytest.mark.parametrize("name", NAMES_THAT_LEAVE)
def test_names_that_would_leave_the_folder_are_refused(
    write: Callable[[Path, dict[str, bytes]], Path], name: str, tmp_path: Path
) -> None:
    refused(write(tmp_path / "a", {"fine.jpg": b"x", name: b"evil"}), repr(name), "outside")


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("link", "/etc/passwd", tarfile.SYMTYPE),
        ("link", "../../outside", tarfile.SYMTYPE),
        ("a/link", "../..", tarfile.SYMTYPE),
        ("link", ".", tarfile.SYMTYPE),
        ("a/b/link", "..", tarfile.SYMTYPE),  # a folder: what is written through it could be anywhere
        ("link", "/etc/passwd", tarfile.LNKTYPE),
        ("link", "../outside", tarfile.LNKTYPE),
        ("link", "nowhere", tarfile.LNKTYPE),
        ("link", "fine/../fine", tarfile.SYMTYPE),
        ("link", "link", tarfile.SYMTYPE),
    ],
)
def test_links_that_lead_anywhere_but_to_a_file_of_the_archive_are_refused(
    name: str, target: str, kind: bytes, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member("fine", size=3), io.BytesIO(b"one"))
        archive.addfile(member(name, type=kind, linkname=target))
        archive.addfile(member(f"{name}/evil", size=4), io.BytesIO(b"evil"))
    refused(tmp_path / "a.tar", name, target, "link")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member("fine", size=3), io.BytesIO(b"one"))
        archive.addfile(member("null", type=kind, devmajor=1, devminor=3))
    refused(tmp_path / "a.tar", "null", "device")


def test_links_and_encrypted_members_of_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "link.zip", "'link'", "is a link")
    data = bytearray(zipped(tmp_path / "locked.zip", {"secret": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    refused(tmp_path / "locked.zip", "secret", "encrypted")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    refused(tmp_path / "a.zip", "'a'", "twice")


def test_more_than_the_disk_holds_is_refused_by_what_the_archive_declares(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        archive.writestr("zeros", b"0")
        archive.filelist[0].file_size = 10**16
    refused(tmp_path / "bomb.zip", "10,000,000.0 GB or more", "are free")
    with tarfile.open(tmp_path / "bomb.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member("zeros", size=10**16))
    refused(tmp_path / "bomb.tar", "10,000,000.0 GB or more", "are free")


def test_a_zip_that_declares_less_than_it_holds_does_not_write_more(tmp_path: Path) -> None:
    """The declared size is what room was made for."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50_000_000))
        archive.filelist[0].file_size = 1000
    with pytest.raises(UserError, match="damaged"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert sum(files_below(tmp_path / "out").values()) <= 1000


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damage_is_noticed(write: Callable[[Path, dict[str, bytes]], Path], how: str, tmp_path: Path) -> None:
    files = {f"{number}.jpg": random.Random(number).randbytes(20_000) for number in range(3)}
    archive = write(tmp_path / "a", files)
    data = bytearray(archive.read_bytes())
    plain_tar = zipfile.is_zipfile(archive) is False and data[:2] not in (b"\x1f\x8b", b"\xfd7")
    if how == "flipped" and plain_tar:
        pytest.skip("a plain tar has no checksum of its members: ImageNet's has a published one")
    archive.write_bytes(data[: len(data) // 2] if how == "cut" else bytes(data[:30_000] + b"####" + data[30_004:]))
    with pytest.raises(UserError, match=r"damaged|no zip or tar"):
        unpack(archive, tmp_path / "out")


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    for name, content, part in (
        ("page.zip", b"<!DOCTYPE html><title>Log in</title>", "web page"),
        ("empty.zip", b"", "no zip or tar archive"),
        ("text.zip", b"captions\n" * 1000, "no zip or tar archive"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, part)
    zipped(tmp_path / "nothing.zip", {})
    refused(tmp_path / "nothing.zip", "no file")
    with pytest.raises(UserError, match="is missing"):
        unpack(tmp_path / "away.zip", tmp_path / "out")


def test_what_is_unpacked_is_moved_beside_what_is_there(tmp_path: Path) -> None:
    root, fresh = tmp_path / "root", tmp_path / "fresh"
    unpack(zipped(tmp_path / "a.zip", FILES), fresh)
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "own.jpg").write_bytes(b"own")
    (root / "list.txt").write_bytes(b"")
    kept = (root / "list.txt").stat().st_ino
    put_in_place(fresh, root)
    assert contents(root) == {**FILES, "pictures/own.jpg": b"own"}
    assert (root / "list.txt").stat().st_ino == kept, "the same file was there already"
    assert not fresh.exists()


def test_files_that_differ_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    root, fresh = tmp_path / "root", tmp_path / "fresh"
    unpack(zipped(tmp_path / "a.zip", FILES), fresh)
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "a.jpg").write_bytes(b"own")
    (root / "pictures" / "deep").write_bytes(b"a file, not a folder")
    with pytest.raises(UserError, match=r"2 file\(s\).*a\.jpg.*overwrite=true"):
        put_in_place(fresh, root)
    assert contents(root) == {"pictures/a.jpg": b"own", "pictures/deep": b"a file, not a folder"}
    put_in_place(fresh, root, overwrite=True)
    assert contents(root) == FILES


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {small} 2>/dev/null") != 0:
        pytest.skip("this machine mounts nothing")
    try:
        archive = zipped(tmp_path / "a.zip", {f"{i}.jpg": random.Random(i).randbytes(300_000) for i in range(3)})
        (small / "filler").write_bytes(bytes(300_000))
        with pytest.raises(UserError, match="unpacked, it takes 0"):
            unpack(archive, small / "out")
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / "big.jpg").write_bytes(bytes(2_000_000))
        with pytest.raises(UserError, match="the disk is full"):
            put_in_place(tmp_path / "fresh", small)
        assert (tmp_path / "fresh" / "big.jpg").exists()
    finally:
        os.system(f"umount {small}")
