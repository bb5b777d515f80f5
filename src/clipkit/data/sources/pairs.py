"""Picture–caption pairs listed in a CSV, TSV, JSONL or Parquet file; picture paths are relative to the file.

Run: python -m clipkit.train data=pairs data.file=captions.csv
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clipkit.data.images import FolderReader
from clipkit.data.listing import Inputs, check_classes, check_name, is_unicode, shown
from clipkit.data.records import SPLITS, Record, Records
from clipkit.data.sources.rows import Rows, open_rows
from clipkit.data.splits import assign_splits, carve_validation
from clipkit.errors import UserError

__all__ = ["pairs"]

SPLIT_NAMES = {"dev": "val", "valid": "val", "validation": "val", "training": "train", "restval": "train"}


def pairs(
    file: str | Path,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    label_column: str | None = None,
    split_column: str | None = None,
    split_seed: int = 1,
) -> Records:
    """The pairs of a file: rows that name the same picture give it several captions, and stay in one split.

    A row that repeats a picture with the same caption is left out. An absolute path is taken if it lies below the
    file's folder. A picture that is missing is found when pictures are decoded.

    Args:
        file: the list. In JSONL and Parquet a caption may be a list of captions.
        image_column, caption_column: names of columns.
        label_column: of the class, by its name; null: pictures have none.
        split_column: null means the column `split`, if there is one. Without any: 70/10/20 by picture and seed,
            stratified when labelled. Without validation rows: a tenth of train. Both are said in `notes`.
        split_seed: of the splits that are ours.

    Raises:
        UserError: a file or column is missing, or the first wrong row, by line (Parquet: row, counted from 0).
    """
    file, inputs = Path(file).expanduser(), Inputs()
    rows = open_rows(inputs.add(file))
    if split_column is None and "split" in rows.columns:
        split_column = "split"
    wanted = {"image": image_column, "caption": caption_column, "label": label_column, "split": split_column}
    columns = {what: column for what, column in wanted.items() if column is not None}
    _check_columns(file, rows.columns, columns)
    pictures = _Pictures(file, rows, columns)
    names, notes = pictures.class_names, pictures.notes
    records = list(pictures.records())
    if split_column is None:
        records = assign_splits(records, seed=split_seed)
        notes.append(f"no split column: pictures were divided 70/10/20 (data.split_seed={split_seed})")
    elif not any(record.split == "val" for record in records):
        records = carve_validation(records, seed=split_seed)
        notes.append(f"no validation rows: a tenth of train serves as validation (data.split_seed={split_seed})")
    notes += check_classes(file, names, records)
    table = Records.from_records(records, reader=FolderReader(file.parent), class_names=names, name=file.stem)
    return table.noting(notes).reading(inputs)


def _check_columns(file: Path, have: Sequence[str], columns: Mapping[str, str]) -> None:
    problems = []
    for what, column in columns.items():
        if column not in have:
            near = get_close_matches(column, have, n=1)
            problems.append(f"data.{what}_column={column} is not a column{f' (nearest: {near[0]})' if near else ''}")
        elif have.count(column) > 1:
            problems.append(f"data.{what}_column={column} is the name of {have.count(column)} columns")
    if problems:
        raise UserError(f"data.file={file}: {'; '.join(problems)}. Columns found: {', '.join(have)}")


class _Pictures:
    """The rows of a file, joined by picture.

    The rows of a million pictures are millions of objects: they are handed out as records, and let go, one by one.
    """

    def __init__(self, file: Path, rows: Rows, columns: Mapping[str, str]) -> None:
        self.file, self.place = file, rows.place
        folders = {os.path.abspath(file.parent), os.path.realpath(file.parent)}
        self.below = [folder.rstrip("/") + "/" for folder in folders]  # absolute paths may start so
        self._labels: dict[str, int] = {}  # numbers in the order of appearance
        self._found: dict[str, tuple[int, int | None, str, list[str]]] = {}  # first row, label, split, captions
        what = {name: place for place, name in enumerate(columns)}
        label, split = what.get("label"), what.get("split")
        for number, cells in rows.read(list(columns.values())):
            value = cells[0]
            image = value if isinstance(value, str) and value in self._found else self._image(value, number)
            kind = None if label is None else self._label(cells[label], number)
            part = "train" if split is None else self._split(cells[split], number)
            first = self._found.get(image)
            if first is None:
                first = self._found[image] = (number, kind, part, [])
            elif first[1] != kind or first[2] != part:
                raise self._wrong(number, f"{image} has another label or split than in {self.place.format(first[0])}")
            first[3].extend(self._captions(cells[1], image, number))
        if not self._found:
            raise UserError(f"data.file={file} holds no rows")
        self.class_names = sorted(self._labels)
        repeated = [
            name for name, (*_, texts) in self._found.items() if len(texts) > 1 and len(set(texts)) < len(texts)
        ]
        some = ", ".join(repeated[:3]) + (" …" if len(repeated) > 3 else "")
        self.notes = [f"captions given twice to one picture count once: {len(repeated)} picture(s), {some}"]
        self.notes = self.notes if repeated else []

    def records(self) -> Iterator[Record]:
        """One of each picture, in the order of the file; labels are numbers of sorted class names."""
        number_of = {self._labels[name]: number for number, name in enumerate(self.class_names)}
        found, self._found = self._found, {}
        for image in list(found):
            _, label, split, texts = found.pop(image)
            captions = tuple(dict.fromkeys(texts)) if len(texts) > 1 else (texts[0],)
            yield Record(image, captions, None if label is None else number_of[label], split)

    def _image(self, value: Any, number: int) -> str:
        name = value if isinstance(value, str) else str(value) if isinstance(value, int) else ""
        if not name.startswith("/") and ".." not in name:
            return check_name(name or value, self.file, self.place, number)
        inside = [name[len(base) :] for base in self.below if name.startswith(base)]
        if ".." in name.replace("\\", "/").split("/") or (name.startswith("/") and not inside):
            raise self._wrong(
                number,
                f"the picture {shown(name)} is not below {self.file.parent}, the folder of the list; move the list "
                "above its pictures, or write their paths relative to it",
            )
        return check_name(inside[0] if inside else name, self.file, self.place, number)

    def _captions(self, value: Any, image: str, number: int) -> list[str]:
        several = value if isinstance(value, list) else [value]  # JSONL and Parquet may hold lists
        captions = [self._text(one, number, "caption") for one in several]
        if not captions or not all(captions):
            raise self._wrong(number, f"empty caption, for {image}; fill it in or remove the row")
        return captions

    def _label(self, value: Any, number: int) -> int:
        name = self._text(value, number, "label")
        if not name:
            raise self._wrong(number, "empty label; fill it in or remove the row")
        return self._labels.setdefault(name, len(self._labels))

    def _split(self, value: Any, number: int) -> str:
        name = value.strip().lower() if isinstance(value, str) else ""
        name = SPLIT_NAMES.get(name, name)
        for split in SPLITS:  # the same object each time: a million equal strings would take 50 MB
            if name == split:
                return split
        raise self._wrong(number, f"split {shown(value)} is none of {', '.join(SPLITS)}")

    def _text(self, value: Any, number: int, what: str) -> str:
        """A cell as text, without the blanks around it; a missing one is empty."""
        if isinstance(value, str) and is_unicode(value):
            return value.strip()
        if value is None or value != value:  # not a number: missing, in a column of numbers
            return ""
        if isinstance(value, str | bytes | list | dict):
            raise self._wrong(number, f"the {what} {shown(value)} is no text")
        return str(value)

    def _wrong(self, number: int, what: str) -> UserError:
        return UserError(f"{self.file}, {self.place.format(number)}: {what}")
