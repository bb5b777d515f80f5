"""Tar archives as samples: every writer's headers, damage that is seen, captions from where they stand."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.data.tar_samples import DamagedTar, Sample, Tar, captions_of, count_samples, picture_of, read_samples
from shard_files import Files, picture, sample, write_tar


def read(path: Path, *, seeks: bool = True) -> list[Sample]:
    with path.open("rb") as file:
        return list(read_samples(Tar(file, seeks=seeks), "s"))


def count(path: Path) -> tuple[int, DamagedTar | None]:
    with path.open("rb") as file:
        return count_samples(Tar(file, seeks=True))


@pytest.mark.parametrize("seeks", [True, False])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_pythons_tarfile_finds(tmp_path: Path, form: int, seeks: bool) -> None:
    long = "a" * 60 + "/" + "b" * 80  # more than a plain header holds
    names = ["x.jpg", f"{long}.jpg", f"{long}.txt", "ünïcode/ß.png", "c.d/e.f.jpg", "last.webp"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode() * 40) for name in names], form)
    with path.open("rb") as file:
        tar = Tar(file, seeks=seeks)
        found = [(member.name, tar.content(member)) for member in tar.members()]
    with tarfile.open(path) as reference:
        expected = [(m.name, reference.extractfile(m).read()) for m in reference.getmembers()]  # type: ignore[union-attr]
    assert found == expected


def test_folders_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, data in sample(7):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert [one.key for one in read(tmp_path / "a.tar")] == ["000000007"]


@pytest.mark.parametrize("seeks", [True, False])
def test_samples_are_grouped_by_what_stands_before_the_first_dot(tmp_path: Path, seeks: bool) -> None:
    files: Files = [
        ("__index__.json", b"{}"),
        (".DS_Store", b"x"),
        ("a/1.jpg", b"one"),
        ("a/1.seg.png", b"mask"),
        ("a/1.TXT", b"first"),
        ("a/1.pyd", b"never read"),
        ("b/1.png", b"two"),
        ("b/1.txt", b"second"),
        ("2.webp", b"three"),
        ("README", b"no suffix"),
        ("3.txt", b"text alone"),
    ]
    found = read(write_tar(tmp_path / "a.tar", files), seeks=seeks)
    assert [(one.key, one.parts) for one in found] == [
        ("a/1", {"jpg": b"one", "txt": b"first"}),
        ("b/1", {"png": b"two", "txt": b"second"}),
        ("2", {"webp": b"three"}),
        ("3", {"txt": b"text alone"}),
    ]
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert len({one.image_id for one in found}) == 4


def test_what_is_not_wanted_is_passed_over_and_numbers_stay(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [file for i in range(10) for file in sample(i)])
    with path.open("rb") as file:
        odd = list(read_samples(Tar(file, seeks=True), "s", wanted=lambda i: i % 2 == 1, stop=6))
    assert [(one.number, one.key) for one in odd] == [(i, f"{i:09d}") for i in (1, 3, 5)]
    assert all(set(one.parts) == {"jpg", "json", "txt"} for one in odd)


def cut_at(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


@pytest.mark.parametrize("seeks", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.31, 0.5, 0.77, 0.9])
def test_an_archive_that_is_cut_off_gives_what_is_complete_and_says_so(
    tmp_path: Path, share: float, seeks: bool
) -> None:
    path = write_tar(tmp_path / "a.tar", [file for i in range(10) for file in sample(i)])
    path.write_bytes(path.read_bytes()[:-9000])  # the zeros at the end are no loss
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share) // 512 * 512 + 100])
    kept: list[Sample] = []
    with path.open("rb") as file, pytest.raises(DamagedTar, match="ends after"):
        kept.extend(read_samples(Tar(file, seeks=seeks), "s"))
    assert len(kept) == count(path)[0] < 10
    assert [file for one in kept for file in sorted(one.parts)] == ["jpg", "json", "txt"] * len(kept)


def test_counting_agrees_with_reading_also_at_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [file for i in range(6) for file in sample(i)])
    whole = path.read_bytes()
    for end in range(512, 6 * 3 * 1024, 700):
        path.write_bytes(whole[:end])
        found = 0
        with path.open("rb") as file:
            try:
                for _ in read_samples(Tar(file, seeks=False), "s"):
                    found += 1
            except DamagedTar:
                pass
        assert count(path)[0] == found, end


def test_bytes_that_are_no_header_are_damage_with_their_place(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [file for i in range(4) for file in sample(i)])
    data = bytearray(path.read_bytes())
    place = data.index(b"000000002.jpg")
    data[place + 3] ^= 0xFF
    path.write_bytes(data)
    counted, damage = count(path)
    assert counted == 1  # the second one may go on behind the damage
    assert f"no tar header at byte {place:,}" in str(damage)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + bytes(1000), b"<html>not found</html>" * 100])
def test_what_is_no_archive_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    counted, damage = count(tmp_path / "a.tar")
    assert counted == 0
    assert damage is not None


def test_sizes_beyond_the_file_are_not_believed(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 1 << 50
    header = member.tobuf(tarfile.GNU_FORMAT)
    for seeks in (True, False):
        (tmp_path / "a.tar").write_bytes(header + b"few bytes".ljust(512))
        with pytest.raises(DamagedTar):
            read(tmp_path / "a.tar", seeks=seeks)


def test_an_empty_archive_has_no_samples_and_no_damage(tmp_path: Path) -> None:
    assert count(write_tar(tmp_path / "a.tar", [])) == (0, None)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"txt": b" a\n cat "}, ("a cat",)),
        ({"txt": b"\xef\xbb\xbfeine Katze"}, ("eine Katze",)),
        ({"txt": b"no", "json": as_json({"caption": "yes"})}, ("yes",)),
        ({"txt": b"plain", "json": as_json({"url": "u"})}, ("plain",)),
        ({"txt": b"plain", "json": as_json({"caption": None})}, ("plain",)),
        ({"json": as_json({"caption": ["one", " ", "two"]})}, ("one", "two")),
    ],
)
def test_captions_come_from_the_json_else_from_the_text(parts: dict[str, bytes], expected: tuple[str, ...]) -> None:
    assert captions_of(parts, "caption") == expected


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "no caption"),
        ({"txt": b" \n"}, "empty"),
        ({"txt": b"\xff\xfe"}, "not UTF-8"),
        ({"json": b"\xff{}"}, "not UTF-8"),
        ({"json": b"{"}, "damaged"),
        ({"json": b"[" * 100_000}, "damaged"),
        ({"json": b"[]"}, "no object"),
        ({"json": as_json({"text": "x"})}, "'caption'"),
    ],
)
def test_what_has_no_caption_says_why(parts: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        captions_of(parts, "caption")


def test_another_key_can_hold_the_caption() -> None:
    assert captions_of({"json": as_json({"TEXT": "x", "caption": "y"})}, "TEXT") == ("x",)


def test_a_sample_without_a_picture_says_so() -> None:
    assert picture_of({"png": b"p", "txt": b"t"}) == b"p"
    with pytest.raises(ValueError, match="no picture"):
        picture_of({"txt": b"t"})
    assert picture(3) != picture(4)
