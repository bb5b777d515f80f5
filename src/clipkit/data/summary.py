"""What is in a data set, in numbers: counts by split, classes, caption lengths; and which pictures to show of it.

Run: python -m clipkit.describe data=…
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from posixpath import splitext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.listing import SUFFIXES
from clipkit.data.randomness import uniform
from clipkit.data.records import SPLITS, Records

__all__ = [
    "Captions",
    "Classes",
    "Part",
    "Spread",
    "Summary",
    "caption_lengths",
    "class_counts",
    "sample_rows",
    "spread",
    "summarize",
]

LOOK_AT = 500  # candidates of one part that are compared for each picture to show


@dataclass(frozen=True)
class Spread:
    """How whole numbers are distributed; quantiles are numbers that occur (of two in the middle, the lower one)."""

    min: int
    q05: int
    median: int
    q95: int
    q99: int
    max: int
    mean: float


@dataclass(frozen=True)
class Part:
    """One split, or one subset of it."""

    split: str
    subset: str
    pictures: int
    captions: int
    classes: int


@dataclass(frozen=True)
class Captions:
    """The data set's own captions.

    Args:
        total, distinct: how many, and how many different texts.
        repeated_share: share of captions whose text stands more than once.
        most_repeated: up to five such texts, each with how often it stands.
        pictures_without: pictures that have none.
        per_picture: captions of a picture, those without included.
        words, characters: lengths of captions; words are what white space separates.
    """

    total: int
    distinct: int
    repeated_share: float
    most_repeated: list[tuple[str, int]]
    pictures_without: int
    per_picture: Spread
    words: Spread
    characters: Spread


@dataclass(frozen=True)
class Classes:
    """The classes.

    Args:
        total: how many.
        pictures_without: pictures that have none.
        pictures_per_class: by split, and under "all".
        missing: for each split that has pictures, the classes without any there.
    """

    total: int
    pictures_without: int
    pictures_per_class: dict[str, Spread]
    missing: dict[str, list[str]]


@dataclass(frozen=True)
class Summary:
    """All numbers that the records themselves give, without opening a picture.

    Args:
        name: of the data set.
        pictures, groups: pictures that are listed, and different things that they show.
        parts: by split and subset; train, val and test are always there.
        captions, classes: None where the data set has none.
        file_endings: of the pictures' names, where these are files'.
        notes: what the data set's reader decided in the user's place.
    """

    name: str
    pictures: int
    groups: int
    parts: list[Part]
    captions: Captions | None
    classes: Classes | None
    file_endings: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def summarize(records: Records) -> Summary:
    """Count what is in these records, which must be at least one."""
    endings = Counter(splitext(name)[1].lower() for name in records.table["image"].to_pylist())
    return Summary(
        name=records.name,
        pictures=len(records),
        groups=len(np.unique(records.groups)),
        parts=_parts(records),
        captions=_captions(records),
        classes=_classes(records),
        file_endings={ending: count for ending, count in endings.most_common() if ending in SUFFIXES},
        notes=list(records.notes),
    )


def spread(values: Sequence[int] | NDArray[np.int64]) -> Spread:
    """The distribution of at least one number."""
    low, q05, median, q95, q99, high = np.quantile(
        np.asarray(values), (0, 0.05, 0.5, 0.95, 0.99, 1), method="inverted_cdf"
    ).tolist()
    return Spread(int(low), int(q05), int(median), int(q95), int(q99), int(high), round(float(np.mean(values)), 3))


def class_counts(records: Records) -> pd.DataFrame:
    """Pictures by class: one row a class, columns `class`, train, val, test (and other splits that occur)."""
    names = _class_names(records)
    table = {"class": names}
    for split in _splits(records):
        labels = records.select(split).labels
        table[split] = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    return pd.DataFrame(table)


def caption_lengths(records: Records) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[M] words and [M] characters of each caption, in the order of the records."""
    texts, index = records.caption_texts
    trimmed = pc.utf8_trim_whitespace(texts)
    words = pc.if_else(pc.equal(trimmed, ""), 0, pc.list_value_length(pc.utf8_split_whitespace(trimmed)))
    lengths = [pc.fill_null(array, 0).to_numpy(zero_copy_only=False) for array in (words, pc.utf8_length(texts))]
    return lengths[0].astype(np.int64)[index], lengths[1].astype(np.int64)[index]


def sample_rows(records: Records, count: int, *, seed: int) -> list[int]:
    """Rows to show: in turn from each split and subset, at random by seed, classes not yet shown first.

    The first n of more rows are those that a smaller `count` gives.
    """
    order = np.argsort(uniform(seed, 0, records.image_ids, 1, purpose="show")[:, 0], kind="stable")
    waiting = [order[rows[order]].tolist() for _, _, rows in _divided(records)]
    shown: Counter[tuple[str, int]] = Counter()
    chosen: list[int] = []
    while len(chosen) < count and any(waiting):
        for rows in filter(None, waiting):
            best = min(rows[:LOOK_AT], key=lambda row: tuple(shown[what] for what in _shows(records, row)))
            rows.remove(best)
            chosen.append(best)
            shown.update(_shows(records, best))
    return chosen[:count]


def _shows(records: Records, row: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("class", int(records.labels[row])), ("group", int(records.groups[row]))


def _splits(records: Records) -> list[str]:
    """train, val, test, and whatever else occurs."""
    found = pc.unique(records.table["split"]).to_pylist()
    return [*SPLITS, *sorted(set(found) - set(SPLITS))]


def _parts(records: Records) -> list[Part]:
    captions, labels = np.diff(records.caption_offsets), records.labels
    return [
        Part(split, subset, int(rows.sum()), int(captions[rows].sum()), len(np.unique(labels[rows & (labels >= 0)])))
        for split, subset, rows in _divided(records)
    ]


def _divided(records: Records) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Each split and subset, and which rows belong to it."""
    split, subset = (records.table[column].to_pandas().to_numpy(str) for column in ("split", "subset"))
    return [
        (name, part, (split == name) & (subset == part))
        for name in _splits(records)
        for part in np.unique(subset[split == name]).tolist() or [""]
    ]


def _class_names(records: Records) -> list[str]:
    """The names; numbers where records have classes without names."""
    unnamed = range(len(records.class_names), int(records.labels.max(initial=-1)) + 1)
    return [*records.class_names, *map(str, unnamed)]


def _captions(records: Records) -> Captions | None:
    texts, index = records.caption_texts
    if not len(index):
        return None
    often = np.bincount(index)
    top = [number for number in np.argsort(-often, kind="stable")[:5].tolist() if often[number] > 1]
    per_picture = np.diff(records.caption_offsets)
    words, characters = caption_lengths(records)
    return Captions(
        total=len(index),
        distinct=len(often),
        repeated_share=round(float((often[index] > 1).mean()), 6),
        most_repeated=[(_text(texts[number]), int(often[number])) for number in top],
        pictures_without=int((per_picture == 0).sum()),
        per_picture=spread(per_picture),
        words=spread(words),
        characters=spread(characters),
    )


def _text(value: pa.Scalar) -> str:
    return str(value.as_py() or "")


def _classes(records: Records) -> Classes | None:
    counts = class_counts(records).set_index("class")
    if counts.empty:
        return None
    return Classes(
        total=len(counts),
        pictures_without=int((records.labels < 0).sum()),
        pictures_per_class={
            **{split: spread(counts[split].to_numpy()) for split in counts if counts[split].any()},
            "all": spread(counts.sum(axis=1).to_numpy()),
        },
        missing={split: counts.index[counts[split] == 0].tolist() for split in counts if counts[split].any()},
    )
