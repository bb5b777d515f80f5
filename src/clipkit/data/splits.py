"""Splits where a data set leaves them open: by picture, seeded, stratified when labelled."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipkit.data.randomness import uniform
from clipkit.data.records import Record

__all__ = ["assign_splits", "carve_validation"]

SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))


def assign_splits(
    records: Sequence[Record], *, seed: int, shares: Sequence[tuple[str, float]] = SHARES
) -> list[Record]:
    """Give every record a split: within each class (all unlabelled ones are one class), shuffled by seed.

    Records of one group (one concept, one picture listed twice) are never divided.
    """
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.image if record.group is None else record.group, []).append(index)
    order = uniform(seed, 0, np.arange(len(groups)), 1, purpose="split")[:, 0]
    by_class: dict[int | None, list[tuple[float, list[int]]]] = {}
    for key, rows in zip(order, groups.values(), strict=True):
        by_class.setdefault(records[rows[0]].label, []).append((float(key), rows))
    result = list(records)
    bounds = np.cumsum([share for _, share in shares])
    # each class is cut at an offset of its own: with the same cuts, small classes would all leave the same split empty
    offsets = uniform(seed, 1, np.arange(len(by_class)), 1, purpose="split")[:, 0]
    for offset, members in zip(offsets, by_class.values(), strict=True):
        for place, (_, rows) in enumerate(sorted(members)):
            position = (place + offset) / len(members)
            split = shares[int(np.searchsorted(bounds, position).clip(0, len(shares) - 1))][0]
            for row in rows:
                result[row] = replace(records[row], split=split)
    return result


def carve_validation(records: Sequence[Record], *, seed: int, share: float = 0.1) -> list[Record]:
    """Take validation from training where a data set has none."""
    train = [record for record in records if record.split == "train"]
    rest = [record for record in records if record.split != "train"]
    return assign_splits(train, seed=seed, shares=(("train", 1 - share), ("val", share))) + rest
