"""Pictures that join a data set as a new class: a manifest that names them is all that another run needs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.data.few_shot import choose_pictures
from clipkit.data.images import EncodedReader, FolderReader, ImageReader, ZipReader
from clipkit.data.manifest import Choice, Manifest, write_manifest
from clipkit.data.records import Record, Records
from clipkit.data.sources.emoji import ARCHIVE, emoji
from clipkit.errors import UserError


def files(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [str(folder / f"{number}.png") for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (20, 20), (number, 100, 200)).save(name)
    return names


class Painter:
    """A reader that gives no bytes."""

    def __call__(self, name: str) -> Image.Image:
        return Image.new("RGB", (10, 10))

    def stamp(self, name: str) -> str:
        return name


def pets(reader: ImageReader) -> Records:
    rows = [Record(f"{name}/{n}.jpg", (), number) for number, name in enumerate(("cat", "dog")) for n in range(9)]
    return Records.from_records(rows, reader=reader, class_names=("cat", "dog"), name="pets")


def manifest_of(folder: Path, records: Records, shots: int | None) -> Manifest:
    found, choice = choose_pictures(records, shots=shots)
    write_manifest(folder / "first.json", found, choice or Choice(None, 1))
    return Manifest.read(folder / "first.json")


def test_accepted_pictures_become_a_class_of_any_data_set(tmp_path: Path) -> None:
    """The embedded set lies in an archive; the new pictures are files."""
    records, new = emoji(), files(tmp_path / "new", 9)
    manifest = manifest_of(tmp_path, records, 4)
    extended, counts = manifest.extended("gadget", new)
    assert counts == {"train": 4, "val": 4, "left": 1}
    extended.write(tmp_path / "second.json")
    found, choice = choose_pictures(records, manifest=tmp_path / "second.json")
    assert choice == manifest.choice
    assert found.class_names == (*records.class_names, "gadget")
    mine = found.labels == len(records.class_names)
    names = found.table["image"].to_pylist()
    assert [name for name, own in zip(names, mine, strict=True) if own] == new[:8]
    assert found.select("train").labels.tolist().count(48) == 4
    assert len(set(found.image_ids.tolist())) == len(found)
    assert not set(found.groups[mine]) & set(found.groups[~mine])
    row = int(np.flatnonzero(mine)[2])
    assert found.reader(names[row]).getpixel((0, 0)) == (2, 100, 200)
    assert found.reader(names[0]).size == ZipReader(ARCHIVE)(names[0]).size
    assert found.reader.stamp(names[row]) == FolderReader("").stamp(new[2])


def test_a_run_on_an_extended_manifest_leaves_one_that_can_be_given_back(tmp_path: Path) -> None:
    records, new = emoji(), files(tmp_path / "new", 5)
    extended, _ = manifest_of(tmp_path, records, 4).extended("gadget", new)
    extended.write(tmp_path / "second.json")
    found, choice = choose_pictures(records, manifest=tmp_path / "second.json")
    assert choice is not None
    write_manifest(tmp_path / "third.json", found, choice)
    again, _ = choose_pictures(records, manifest=tmp_path / "third.json")
    assert again.fingerprint == found.fingerprint
    assert Manifest.read(tmp_path / "third.json").fingerprint == extended.fingerprint


def test_a_second_acceptance_adds_to_the_class_and_doubles_nothing(tmp_path: Path) -> None:
    new = files(tmp_path / "new", 6)
    manifest = manifest_of(tmp_path, pets(Painter()), 2)
    once, _ = manifest.extended("gadget", new[:3])
    twice, counts = once.extended("gadget", new)
    assert counts == {"train": 2, "val": 1, "left": 0}
    listed = [name for by_class in twice.added.values() for name in by_class["gadget"]]
    assert sorted(listed) == sorted(set(listed)) == new
    assert twice.class_names == ("cat", "dog", "gadget")


def test_pictures_of_a_known_class_join_it(tmp_path: Path) -> None:
    new = files(tmp_path / "new", 3)
    extended, _ = manifest_of(tmp_path, pets(Painter()), None).extended("dog", new)
    extended.write(tmp_path / "second.json")
    found, _ = choose_pictures(pets(Painter()), manifest=tmp_path / "second.json")
    assert found.class_names == ("cat", "dog")
    assert (found.labels == 1).sum() == 9 + 3


@pytest.mark.parametrize(("reader", "gives_bytes"), [(Painter(), False), (FolderReader("/nowhere"), True)])
def test_a_reader_gives_bytes_if_the_data_sets_does(tmp_path: Path, reader: ImageReader, gives_bytes: bool) -> None:
    new = files(tmp_path / "new", 2)
    extended, _ = manifest_of(tmp_path, pets(reader), None).extended("gadget", new)
    extended.write(tmp_path / "second.json")
    found, _ = choose_pictures(pets(reader), manifest=tmp_path / "second.json")
    assert isinstance(found.reader, EncodedReader) == gives_bytes
    if isinstance(found.reader, EncodedReader):
        assert found.reader.read(new[0]) == Path(new[0]).read_bytes()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    new = files(tmp_path / "new", 2)
    extended, _ = manifest_of(tmp_path, pets(Painter()), None).extended("gadget", new)
    extended.write(tmp_path / "second.json")
    Path(new[0]).unlink()
    with pytest.raises(UserError, match=r"1 of 2 added pictures are not there any more: .*0\.png"):
        choose_pictures(pets(Painter()), manifest=tmp_path / "second.json")


def test_a_broken_list_of_added_pictures_is_refused(tmp_path: Path) -> None:
    manifest_of(tmp_path, pets(Painter()), None)
    content = json.loads((tmp_path / "first.json").read_text())
    (tmp_path / "first.json").write_text(json.dumps({**content, "added": {"train": {"gadget": "a.png"}}}))
    with pytest.raises(UserError, match='"gadget" in "train" is no list of names'):
        Manifest.read(tmp_path / "first.json")
