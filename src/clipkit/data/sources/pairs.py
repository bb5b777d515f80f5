"""Picture–caption pairs listed in a CSV, TSV, JSONL or Parquet file; picture paths are relative to the file.

Run: python -m clipkit.train data=pairs data.file=captions.csv
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipkit.data.images import FolderReader
from clipkit.data.records import SPLITS, Record, Records
from clipkit.data.splits import assign_splits, carve_validation
from clipkit.errors import UserError

__all__ = ["pairs"]

READERS = {
    ".csv": lambda file: pd.read_csv(file, dtype=str, keep_default_na=False),
    ".tsv": lambda file: pd.read_csv(file, dtype=str, keep_default_na=False, sep="\t"),
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
}
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

    `split_column` null means the column `split`, if there is one. Without any: 70/10/20 by picture and seed, stratified
    when labelled. Without validation rows: a tenth of train, said in `notes`.
    """
    file = Path(file)
    frame = _read(file)
    if split_column is None and "split" in frame.columns:
        split_column = "split"
    columns = {"data.image_column": image_column, "data.caption_column": caption_column}
    columns |= {"data.label_column": label_column} if label_column is not None else {}
    columns |= {"data.split_column": split_column} if split_column is not None else {}
    _check_columns(file, frame, columns)
    names = sorted({str(value) for value in frame[label_column]}) if label_column is not None else []
    records = _records(file, frame, image_column, caption_column, label_column, split_column, names)
    notes = []
    if split_column is None:
        records = assign_splits(records, seed=split_seed)
        notes.append(f"no split column: pictures were divided 70/10/20 (data.split_seed={split_seed})")
    elif not any(record.split == "val" for record in records):
        records = carve_validation(records, seed=split_seed)
        notes.append(f"no validation rows: a tenth of train serves as validation (data.split_seed={split_seed})")
    table = Records.from_records(records, reader=FolderReader(file.parent), class_names=names, name=file.stem)
    table.check_captions(file)
    return table.noting(notes)


def _read(file: Path) -> pd.DataFrame:
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"data.file={file}: unknown kind {file.suffix!r}; known: {', '.join(READERS)}")
    try:
        frame = reader(file)
    except FileNotFoundError:
        raise UserError(f"data.file={file}: no such file") from None
    except (ValueError, OSError) as error:  # pandas' parsers and pyarrow raise kinds of ValueError
        raise UserError(f"data.file={file} cannot be read as {file.suffix[1:].upper()}: {error}") from error
    if frame.empty:
        raise UserError(f"data.file={file} holds no rows")
    return frame


def _check_columns(file: Path, frame: pd.DataFrame, columns: dict[str, str]) -> None:
    have = [str(column) for column in frame.columns]
    problems = []
    for key, column in columns.items():
        if column not in have:
            near = get_close_matches(column, have, n=1)
            problems.append(f"{key}={column} is not a column{f' (nearest: {near[0]})' if near else ''}")
    if problems:
        raise UserError(f"data.file={file}: {'; '.join(problems)}. Columns found: {', '.join(have)}")


def _records(
    file: Path,
    frame: pd.DataFrame,
    image_column: str,
    caption_column: str,
    label_column: str | None,
    split_column: str | None,
    names: list[str],
) -> list[Record]:
    index = {name: number for number, name in enumerate(names)}
    merged: dict[str, dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        split = str(row[split_column]).strip().lower() if split_column is not None else "train"
        split = SPLIT_NAMES.get(split, split)
        if split not in SPLITS:
            raise UserError(f"{file}: split {row[split_column]!r} is none of {', '.join(SPLITS)}")
        label = index[str(row[label_column])] if label_column is not None else None
        image = str(row[image_column])
        entry = merged.setdefault(image, {"captions": [], "label": label, "split": split})
        if (entry["label"], entry["split"]) != (label, split):
            raise UserError(f"{file}: {image} appears with different labels or splits")
        value = row[caption_column]
        several = value if isinstance(value, list | np.ndarray) else [value]  # JSONL gives lists, Parquet arrays
        entry["captions"] += [_text(one) for one in several]
    return [
        Record(image=image, captions=tuple(entry["captions"]), label=entry["label"], split=entry["split"])
        for image, entry in merged.items()
    ]


def _text(value: Any) -> str:
    """A cell as text; a missing one is empty."""
    return "" if value is None or value is pd.NA or value != value else str(value)
