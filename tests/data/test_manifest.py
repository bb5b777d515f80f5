"""Manifests: what is written can be read elsewhere, means exactly those pictures, and no mistake passes silently."""

import json
import random
import resource
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from clipkit.data.images import FolderReader
from clipkit.data.manifest import Choice, Manifest, write_manifest
from clipkit.data.records import Record, Records
from clipkit.errors import UserError

CHOICE = Choice(shots=2, split_seed=7)
ROWS = [
    Record("train/cat/10.jpg", label=0),
    Record("train/cat/9.jpg", label=0),
    Record("train/hund é/1.jpg", label=1),
    Record("b.jpg", label=1, split="val"),
    Record("c.jpg", label=0, split="test"),
    Record("d.jpg", label=1, split="test"),
]


def records(rows: Sequence[Record] = ROWS, *, names: Sequence[str] = ("cat", "dog"), root: str = "/a/pets") -> Records:
    return Records.from_records(rows, reader=FolderReader(root), class_names=names, name="pets")


def splits(found: Records) -> dict[str, str]:
    return dict(zip(found.table["image"].to_pylist(), found.table["split"].to_pylist(), strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    write_manifest(path, records(), CHOICE)
    return path


def test_the_file_says_what_a_person_wants_to_know(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    fingerprint = content.pop("fingerprint")
    assert content == {
        "data": "pets",
        "shots": 2,
        "split_seed": 7,
        "counts": {"train": 3, "val": 1, "test": 2},
        "class_names": ["cat", "dog"],
        "splits": {
            "train": {"cat": ["train/cat/9.jpg", "train/cat/10.jpg"], "dog": ["train/hund é/1.jpg"]},
            "val": {"dog": ["b.jpg"]},
            "test": {"cat": ["c.jpg"], "dog": ["d.jpg"]},
        },
    }
    plain = json.dumps([content["class_names"], content["splits"]], sort_keys=True, separators=(",", ":"))
    assert fingerprint == sha256(plain.encode()).hexdigest()


def test_exactly_the_named_pictures_come_back_whatever_the_order_root_and_own_splits(file: Path) -> None:
    """The other machine has more pictures, elsewhere, in another order, under other splits and by absolute names."""
    more = [*ROWS, Record("new.jpg", label=0), Record("train/cat/11.jpg", label=0, split="test")]
    elsewhere = [Record(f"/b/animals/{r.image}", label=r.label, split="train") for r in more]
    for listed in (more, random.Random(0).sample(elsewhere, len(elsewhere))):
        found = Manifest.read(file).select(records(listed, root="/b/animals"), file)
        assert {name.removeprefix("/b/animals/"): split for name, split in splits(found).items()} == splits(records())
        (note,) = found.notes
        assert f"data.manifest={file}: train 3, val 1, test 2 (data.shots=2, data.split_seed=7)" in note


def test_the_order_of_listing_does_not_change_the_file(file: Path, tmp_path: Path) -> None:
    for shuffle in range(4):
        other = tmp_path / f"{shuffle}.json"
        write_manifest(other, records(random.Random(shuffle).sample(ROWS, len(ROWS))), CHOICE)
        assert other.read_bytes() == file.read_bytes()


def test_full_splits_without_classes_are_written_too(tmp_path: Path) -> None:
    rows = [Record(f"{i}.jpg", (f"caption {i}",), split="train" if i < 8 else "test") for i in range(10)]
    write_manifest(tmp_path / "m.json", records(rows, names=()), Choice(None, 1))
    found = Manifest.read(tmp_path / "m.json").select(records(rows, names=()), "m.json")
    assert splits(found) == splits(records(rows))
    assert "all pictures" in found.notes[0]


def changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The manifest after a change by hand, its fingerprint removed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["fingerprint"]
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_a_list_changed_by_hand_is_refused_until_its_fingerprint_is_removed(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content["splits"]["test"]["cat"] = []
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"changed after it was written.*remove the line \"fingerprint\""):
        Manifest.read(file)
    changed(file, lambda c: None)
    assert "c.jpg" not in splits(Manifest.read(file).select(records(), file))


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "two splits": (lambda c: c["splits"]["val"]["dog"].append("d.jpg"), r"more than once: d\.jpg in val and test"),
    "twice in one": (lambda c: c["splits"]["test"]["cat"].append("c.jpg"), r"c\.jpg in test and test"),
    "no data": (lambda c: c.pop("data"), '"data" is missing'),
    "no splits": (lambda c: c.pop("splits"), '"splits" is missing'),
    "no classes": (lambda c: c.pop("class_names"), '"class_names" is missing'),
    "shots in words": (lambda c: c.update(shots="two"), "\"shots\" is 'two'"),
    "shots as a truth": (lambda c: c.update(shots=True), '"shots" is True'),
    "seed missing": (lambda c: c.update(split_seed=None), '"split_seed" is None'),
    "an unknown split": (lambda c: c["splits"].update(dev={}), '"splits" has dev; known are train, val, test'),
    "no classes in a split": (lambda c: c["splits"].update(val=["b.jpg"]), '"val" does not list pictures by class'),
    "a name that is none": (lambda c: c["splits"]["val"].update(dog=[3]), '"dog" in "val" is no list of names'),
    "a class that is none": (lambda c: c.update(class_names=["cat", 3]), "holds no names"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_manifest_is_refused_with_the_file_and_the_mistake(file: Path, mistake: str) -> None:
    change, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        Manifest.read(changed(file, change))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"data": "pets", "shots": 2,', b"[]", b"3", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"{}"],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.manifest=.*bad\.json"):
        Manifest.read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Manifest.read(path)


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (ROWS[2:], ("cat", "dog"), r"2 of 6 pictures are missing: train/cat/9\.jpg, train/cat/10\.jpg"),
        (ROWS, ("cat", "wolf"), r"classes differ: class 1 is 'dog' there and 'wolf' here"),
        (ROWS, ("cat", "dog", "fox"), r"class 2 is nothing there and 'fox' here"),
        (
            [*ROWS[:3], Record("b.jpg", label=0), *ROWS[4:]],
            ("cat", "dog"),
            r"b\.jpg is of 'dog' there and of 'cat' here",
        ),
        ([], ("cat", "dog"), r"6 of 6 pictures are missing: .* …"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused_with_the_first_mismatches(
    file: Path, rows: list[Record], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Manifest.read(file).select(records(rows, names=names), file)
    assert f"data.manifest={file} (made from pets)" in str(caught.value)


def test_writing_again_is_fine_and_another_split_is_not_written_over(file: Path) -> None:
    before = file.read_bytes()
    write_manifest(file, records(), CHOICE)
    with pytest.raises(UserError, match="holds another split than this run has now"):
        write_manifest(file, records(ROWS[1:]), CHOICE)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: the kernel refuses the write in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(UserError, match=r"m\.json could not be written"):
            write_manifest(tmp_path / "m.json", records(), CHOICE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
