"""Splits where a data set leaves them open: by picture, seeded, stratified when labelled."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipkit.data.randomness import uniform
from clipkit.data.records import Record

__all__ = ["assign_splits", "carve_validation", "name_order"]

NUMBER = re.compile("[0-9]+")
SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))


def assign_splits(
    records: Sequence[Record], *, seed: int, shares: Sequence[tuple[str, float]] = SHARES
) -> list[Record]:
    """Give every record a split: within each class (all unlabelled ones are one class), shuffled by seed.

    Records of one group (one concept, one picture listed twice) are never divided. The split follows from the seed and
    the pictures' names, labels and groups: the order in which they are listed makes no difference.
    """
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.image if record.group is None else record.group, []).append(index)
    order = uniform(seed, 0, np.arange(len(groups)), 1, purpose="split")[:, 0].tolist()
    by_class: dict[int, list[tuple[float, list[int]]]] = {}
    for key, name in zip(order, sorted(groups, key=name_order), strict=True):
        rows = groups[name]
        first = rows[0] if len(rows) == 1 else min(rows, key=lambda row: (records[row].image, _label(records[row])))
        by_class.setdefault(_label(records[first]), []).append((key, rows))
    result = list(records)
    bounds = np.cumsum([share for _, share in shares])
    # each class is cut at an offset of its own: with the same cuts, small classes would all leave the same split empty
    offsets = uniform(seed, 1, np.arange(len(by_class)), 1, purpose="split")[:, 0]
    for offset, label in zip(offsets, sorted(by_class), strict=True):
        members = by_class[label]
        positions = (np.arange(len(members)) + offset) / len(members)
        places = np.searchsorted(bounds, positions).clip(0, len(shares) - 1).tolist()
        for place, (_, rows) in zip(places, sorted(members), strict=True):
            split = shares[place][0]
            for row in rows:
                record = records[row]
                if record.split != split or record.carved != (split == "val"):
                    result[row] = replace(record, split=split, carved=split == "val")
    return result


def carve_validation(records: Sequence[Record], *, seed: int, share: float = 0.1) -> list[Record]:
    """Take validation from training where a data set has none."""
    train = [record for record in records if record.split == "train"]
    rest = [record for record in records if record.split != "train"]
    return assign_splits(train, seed=seed, shares=(("train", 1 - share), ("val", share))) + rest


def name_order(name: str) -> str:
    """A key to sort names by, numbers inside them by their value: "2.jpg" before "10.jpg", as lists mostly have them.

    Copies of a data set that number the same pictures differently ("00010.jpg", "train.parquet#9") agree in it.
    """
    return NUMBER.sub(_with_length, name) + "\0" + name


def _with_length(number: re.Match[str]) -> str:
    digits = number[0].lstrip("0")
    return f"{len(digits):06}{digits}"


def _label(record: Record) -> int:
    return -1 if record.label is None else record.label
