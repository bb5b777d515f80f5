"""The three text files that hold Flickr's captions: the original token file, and two of Kaggle.

Each reader gives (picture, caption) in the file's order, at least one, and notes about what it mended.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from clipkit.data.listing import check_name
from clipkit.data.sources.annotations import clean_caption, read_text
from clipkit.errors import UserError

__all__ = ["Rows", "read_captions", "read_results", "read_token"]

Rows = tuple[list[tuple[str, str]], list[str]]
LINE = "line {}"
COLUMNS = "image_name| comment_number| comment"


def read_token(file: Path) -> Rows:
    """`Flickr8k.token.txt` and `results_20130124.token`: NAME.jpg#0, a tab, the caption."""
    rows, seen = [], set()
    for number, line in _lines(file):
        key, tab, caption = line.partition("\t")
        name, _, index = key.strip().rpartition("#")
        if not tab or not index.isdecimal():
            raise UserError(f"{file}, line {number}: expected NAME.jpg#0, a tab and the caption; found {line[:80]!r}")
        if (name, index) in seen:
            raise UserError(f"{file}, line {number}: {key} is a duplicate")
        seen.add((name, index))
        rows.append((check_name(name, file, LINE, number), clean_caption(caption, file, LINE, number)))
    return _some(rows, file), []


def read_captions(file: Path) -> Rows:
    """`captions.txt`: CSV with the columns image and caption. Commas without quotes are part of the caption."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    rows, number = [], 1
    try:
        for cells in reader:
            if reader.line_num > number:
                raise UserError(f"{file}, line {number}: a caption over several lines; is a quotation mark not closed?")
            if number == 1 and [cell.strip() for cell in cells] != ["image", "caption"]:
                raise UserError(f"{file}, line 1: the header image,caption is expected; found {','.join(cells)[:80]!r}")
            if number > 1 and cells:
                name, caption = check_name(cells[0], file, LINE, number), ",".join(cells[1:])
                rows.append((name, clean_caption(caption, file, LINE, number)))
            number += 1
    except csv.Error as error:
        raise UserError(f"{file}, line {number}: {error}; is a quotation mark not closed?") from error
    return _some(rows, file), []


def read_results(file: Path) -> Rows:
    """`results.csv`: NAME.jpg| 0| caption. One line of the published file lacks its second bar: it is mended."""
    rows, seen, mended = [], set(), []
    for number, line in _lines(file):
        cells = [cell.strip() for cell in line.split("|", 2)]
        if number == 1:
            if cells != [column.strip() for column in COLUMNS.split("|")]:
                raise UserError(f"{file}, line 1: the header {COLUMNS} is expected; found {line[:80]!r}")
            continue
        name, index, caption = (*cells, "", "")[:3]
        if not caption:
            caption = index.lstrip("0123456789")
            index = index.removesuffix(caption)
            mended.append(number)
        elif not index.isdecimal():
            raise UserError(f"{file}, line {number}: expected NAME.jpg| 0| caption; found {line[:80]!r}")
        rows.append((check_name(name, file, LINE, number), clean_caption(caption, file, LINE, number)))
        if (name, index) in seen:
            raise UserError(f"{file}, line {number}: caption {index} of {name} is a duplicate")
        seen.add((name, index))
    lines = ", ".join(str(number) for number in mended[:5])
    note = f"{file.name}: {len(mended)} caption(s) taken from column comment_number (line {lines})"
    return _some(rows, file), [note] if mended else []


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1; nothing but line feeds ends one, as captions may hold the rest."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _some(rows: list[tuple[str, str]], file: Path) -> list[tuple[str, str]]:
    if not rows:
        raise UserError(f"{file} holds no captions")
    return rows
