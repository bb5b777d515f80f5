"""What is known: which pictures teach, which set thresholds, and who is made of them.

A picture that a detector or the classifier was fitted to looks more familiar than any other, so none sets a threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.few_shot import choose_pictures
from clipkit.data.manifest import Choice, with_splits
from clipkit.data.randomness import permutation
from clipkit.data.records import Records
from clipkit.discovery.fitted import Fitted
from clipkit.discovery.watching import Watcher
from clipkit.errors import UserError

__all__ = ["Make", "divided", "fit_known", "known_pictures"]

HELD_OUT = 0.2  # share of the training pictures that sets thresholds where there is no validation
Make = Callable[[Sequence[str], Tensor, NDArray[np.int64]], Watcher]  # names, features and labels of training pictures


def known_pictures(records: Records, *, shots: int | None, split_seed: int) -> tuple[Records, Choice | None]:
    """`shots` training pictures of each class, and validation pictures; see `choose_pictures`.

    By the few-shot protocol validation pictures are drawn from the training pictures, which a model may have been
    trained on: where the data set sets some apart itself, these validate instead. Where there are none at all, about a
    fifth of the training pictures of each class validate and do not train.
    """
    chosen, choice = choose_pictures(records, shots=shots, split_seed=split_seed)
    splits = np.asarray(records.table["split"].to_pylist())
    own = (splits == "val") & ~records.table["carved"].to_numpy(zero_copy_only=False) & (records.labels >= 0)
    if choice is not None and own.any():
        given = dict(zip(chosen.image_ids.tolist(), chosen.table["split"].to_pylist(), strict=True))
        drawn = [given.get(image_id) for image_id in records.image_ids.tolist()]
        kept = ["val" if mine else None if split == "val" else split for mine, split in zip(own, drawn, strict=True)]
        notes = [
            *chosen.notes[len(records.notes) :],
            f"validation: the data set's own {int(own.sum()):,} pictures instead",
        ]
        return with_splits(records, kept).noting(notes), choice
    splits = np.asarray(chosen.table["split"].to_pylist(), object)
    if not (splits == "val").any():
        train = np.flatnonzero((splits == "train") & (chosen.labels >= 0))
        held = train[divided(chosen.labels[train], split_seed)]
        splits[held] = "val"
        note = f"there are no validation pictures: {len(held):,} training pictures set thresholds instead"
        return with_splits(chosen, splits.tolist()).noting([note]), choice
    return chosen, choice


def fit_known(
    make: Make,
    names: Sequence[str],
    train: tuple[Tensor, NDArray[np.int64]],
    val: Tensor,
    *,
    detectors: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]],
    false_alarms: float,
) -> tuple[Fitted, Watcher]:
    """The classifier and the detectors of known classes, with thresholds from pictures that neither was fitted to.

    Args:
        make: makes the watcher.
        names: of the C known classes.
        train: [N, F] features and [N] labels.
        val: [M, F] features of known pictures, at least one.
        detectors, options, false_alarms: see `Fitted.fit`.
    """
    features, labels = train
    watcher = make(names, features, labels)
    fitted = Fitted.fit(
        watcher.signals(features),
        labels,
        watcher.signals(val),
        names=detectors,
        options=options,
        false_alarms=false_alarms,
    )
    return fitted, watcher


def divided(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """[N] which pictures are held out: a fifth of each class, at least one of a class with two or more.

    Where no class has two, a fifth of all. `UserError` for fewer than two pictures.
    """
    if len(labels) < 2:
        raise UserError(f"{len(labels)} known picture: one has to be fitted to, and another to set the threshold")
    order = permutation(seed, 0, len(labels), purpose="held out")
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held[members[: round(HELD_OUT * len(members)) or int(len(members) > 1)]] = True
    if not held.any():
        held[order[: max(1, round(HELD_OUT * len(labels)))]] = True
    return held
