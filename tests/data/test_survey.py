"""Opening every picture: the broken ones, and the sizes of the others."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data.images import FolderReader
from clipkit.data.records import Record, Records
from clipkit.data.survey import survey


@pytest.mark.parametrize("threads", [1, 5])
def test_broken_pictures_are_named_and_the_others_measured_upright(tmp_path: Path, threads: int) -> None:
    sizes = Counter[tuple[int, int]]()
    for number in range(40):
        size = [(30, 20), (20, 30), (7, 9)][number % 3]
        turned = Image.Exif()
        turned[0x0112] = 6  # lies on its side
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.jpg", exif=turned if number % 4 == 0 else b"")
        if number not in (8, 20, 33):
            sizes[size[::-1] if number % 4 == 0 else size] += 1
    (tmp_path / "8.jpg").write_bytes(b"no picture")
    (tmp_path / "20.jpg").unlink()
    (tmp_path / "33.jpg").write_bytes((tmp_path / "33.jpg").read_bytes()[:300])
    rows = [Record(f"{number}.jpg", ("a",)) for number in range(40)]
    records = Records.from_records(rows, reader=FolderReader(tmp_path))
    said = []
    found = survey(records, threads=threads, on_progress=lambda *progress: said.append(progress))
    assert [name for name, _ in found.broken] == ["8.jpg", "20.jpg", "33.jpg"]
    assert "No such file" in found.broken[1][1]
    assert found.sizes == sizes
    assert len(found.readable) == 37
    assert found.readable.reader is records.reader
    assert [done for _, done, _ in said] == list(range(1, 41))
    assert {total for *_, total in said} == {40}
