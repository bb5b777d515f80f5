"""The index: the same records from disk, and never a table that is no longer true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipkit.data.images import FolderReader, ZipReader
from clipkit.data.index import indexed
from clipkit.data.records import Record, Records


@pytest.fixture
def source(tmp_path: Path) -> Callable[[], Records]:
    """Reads one caption a line from a file; `source.calls` counts."""
    listing = tmp_path / "list.txt"
    listing.write_text("a.jpg,süß\nb.jpg,猫 2\n")

    def read() -> Records:
        read.calls += 1  # type: ignore[attr-defined]
        rows = [line.split(",") for line in listing.read_text().splitlines()]
        records = [Record(name, (text, "again"), label=n % 2, subset="s") for n, (name, text) in enumerate(rows)]
        table = Records.from_records(records, reader=FolderReader(tmp_path), class_names=["x", "ÿ"], name="mine")
        return table.noting(["a note"]).reading([listing, tmp_path / "better.txt"])

    read.calls = 0  # type: ignore[attr-defined]
    return read


def calls(source: Any) -> int:
    return int(source.calls)


def test_the_second_time_the_records_come_from_disk_and_are_the_same(source: Any, tmp_path: Path) -> None:
    first = indexed(source, key={"root": "here"}, folder=tmp_path / "index")
    second = indexed(source, key={"root": "here"}, folder=tmp_path / "index")
    assert calls(source) == 1
    assert second.table.equals(first.table)
    assert (second.class_names, second.name, second.notes, second.inputs) == (
        first.class_names, first.name, first.notes, first.inputs,
    )  # fmt: skip
    assert second.reader.root == first.reader.root  # type: ignore[attr-defined]
    assert second.fingerprint == first.fingerprint
    assert second.select("train", "s").captions(1) == ["猫 2", "again"]


@pytest.mark.parametrize("change", ["longer", "same length", "touched", "gone", "one that was missing"])
def test_any_change_of_what_was_read_is_noticed(source: Any, tmp_path: Path, change: str) -> None:
    indexed(source, key={}, folder=tmp_path / "index")
    listing = tmp_path / "list.txt"
    if change == "longer":
        listing.write_text("a.jpg,süß\nb.jpg,猫 2\nc.jpg,new\n")
    elif change == "same length":
        listing.write_text("a.jpg,süß\nb.jpg,猫 3\n")
    elif change == "touched":
        listing.touch()
    elif change == "gone":
        listing.unlink()
        with pytest.raises(FileNotFoundError):
            indexed(source, key={}, folder=tmp_path / "index")
        return
    else:
        (tmp_path / "better.txt").touch()
    found = indexed(source, key={}, folder=tmp_path / "index")
    assert calls(source) == 2
    assert len(found) == (3 if change == "longer" else 2)


def test_other_arguments_are_another_entry(source: Any, tmp_path: Path) -> None:
    for seed in (0, 1, 0, 1):
        indexed(source, key={"split_seed": seed}, folder=tmp_path / "index")
    assert calls(source) == 2


def test_relative_paths_of_another_folder_are_another_entry(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(source, key={"root": "data"}, folder=tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    indexed(source, key={"root": "data"}, folder=tmp_path / "index")
    assert calls(source) == 2


def test_what_does_not_say_its_inputs_is_read_each_time(source: Any, tmp_path: Path) -> None:
    def silent() -> Records:
        records = source()
        return Records(records.table, records.reader)

    for _ in range(2):
        indexed(silent, key={}, folder=tmp_path / "index")
    assert calls(source) == 2


def test_a_reader_without_a_spec_is_not_kept(source: Any, tmp_path: Path) -> None:
    def zipped() -> Records:
        records = source()
        return Records(records.table, ZipReader(tmp_path / "x.zip"), inputs=records.inputs)

    for _ in range(2):
        indexed(zipped, key={}, folder=tmp_path / "index")
    assert calls(source) == 2


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign", "hostile"])
def test_a_damaged_or_foreign_entry_is_not_believed(source: Any, tmp_path: Path, harm: str) -> None:
    first = indexed(source, key={}, folder=tmp_path / "index")
    (entry,) = (tmp_path / "index").iterdir()
    data = entry.read_bytes()
    if harm == "cut":
        entry.write_bytes(data[: len(data) // 2])
    elif harm == "empty":
        entry.write_bytes(b"")
    elif harm == "foreign":
        entry.write_text("something else")
    else:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        about = json.loads(table.schema.metadata[b"clipkit"])
        about["reader"] = {"_target_": "os.system", "command": "true"}
        table = table.replace_schema_metadata({b"clipkit": json.dumps(about).encode()})
        with pa.OSFile(str(entry), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    again = indexed(source, key={}, folder=tmp_path / "index")
    assert calls(source) == 2
    assert again.table.equals(first.table)


def test_an_index_that_cannot_be_written_is_no_error(source: Any, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file where the folder should be")
    assert len(indexed(source, key={}, folder=tmp_path / "index")) == 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(source: Any, tmp_path: Path) -> None:
    def slow() -> Records:
        records: Records = source()
        (tmp_path / "list.txt").write_text("a.jpg,changed meanwhile\n")
        return records

    assert len(indexed(slow, key={}, folder=tmp_path / "index")) == 2
    assert len(indexed(source, key={}, folder=tmp_path / "index")) == 1
