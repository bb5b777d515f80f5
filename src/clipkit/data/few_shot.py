"""Few-shot subsets by CoOp's protocol (arXiv 2109.01134): k pictures a class to train on, min(k, 4) others to validate.

Run: python -m clipkit.train data=emoji data.shots=4
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipkit.data.manifest import Choice, Manifest, shared_names, with_splits
from clipkit.data.randomness import permutation
from clipkit.data.records import Records
from clipkit.data.splits import name_order
from clipkit.errors import UserError

__all__ = ["choose_pictures", "few_shot"]

VALIDATION_SHOTS = 4
SHOWN = 8  # classes named in a note


def choose_pictures(
    records: Records, *, shots: int | None = None, split_seed: int = 1, manifest: str | Path | None = None
) -> tuple[Records, Choice | None]:
    """The records that a run uses, and how they were chosen; None if they are all.

    Args:
        records: a whole data set.
        shots: training pictures a class; None means all.
        split_seed: of the draw.
        manifest: a file that names the pictures of each split, and decides in place of `shots` and `split_seed`.

    Raises:
        UserError: see `few_shot`, `Manifest.read` and `Manifest.select`; or `shots` contradicts the manifest.
    """
    if manifest is None:
        if shots is None:
            return records, None
        return few_shot(records, shots, split_seed=split_seed), Choice(shots, split_seed)
    listed = Manifest.read(manifest)
    if shots is not None and shots != listed.choice.shots:
        made = "without data.shots" if listed.choice.shots is None else f"with data.shots={listed.choice.shots}"
        raise UserError(
            f"data.shots={shots}, but data.manifest={manifest} was made {made}: leave out data.shots to use its "
            "pictures, or data.manifest to draw others"
        )
    return listed.select(records, manifest), listed.choice


def few_shot(records: Records, shots: int, *, split_seed: int = 1) -> Records:
    """`shots` training pictures of each class, min(`shots`, 4) others for validation, and the whole test split.

    Both are drawn from the data set's training pictures, those that we made validation of among them, and also where it
    has validation pictures of its own. The draw
    follows from the pictures' names, classes and groups and from `split_seed`, whatever the order of listing; with one
    seed, fewer shots are a part of more. Training is served first: a class that is too small gives what it has, and
    `notes` say so. A picture of whose group one trains does not validate.

    Raises:
        UserError: there are no labels or no training pictures, or `shots` is below 1.
    """
    if shots < 1:
        raise UserError(f"data.shots={shots}: at least 1 picture a class is needed (null: all)")
    if not (records.labels >= 0).any():
        raise UserError(
            f"data.shots={shots} draws pictures by class, and {records.name} has no labels: use data with classes "
            "(data=folder, data=emoji, data=pairs with data.label_column=COLUMN), or leave out data.shots"
        )
    official = records.table["split"].to_pylist()
    given = (np.asarray(official) == "train") | records.table["carved"].to_numpy()
    pool = np.flatnonzero(given & (records.labels >= 0))
    if len(pool) == 0:
        raise UserError(f"data.shots={shots}: {records.name} has no training pictures with a class to draw from")
    splits: list[str | None] = [split if split == "test" else None for split in official]
    names = shared_names(records)
    ordered = sorted(pool.tolist(), key=lambda row: name_order(names[row]))
    members: list[list[int]] = [[] for _ in records.class_names]
    for row in ordered:
        members[records.labels[row]].append(row)
    queues = [
        [rows[place] for place in permutation(split_seed, label, len(rows), purpose="few_shot")]
        for label, rows in enumerate(members)
    ]
    train = [queue[:shots] for queue in queues]
    taken = {int(records.groups[row]) for rows in train for row in rows}
    rest = [[row for row in queue[shots:] if int(records.groups[row]) not in taken] for queue in queues]
    val = [queue[: min(shots, VALIDATION_SHOTS)] for queue in rest]
    for split, chosen in (("train", train), ("val", val)):
        for row in (row for rows in chosen for row in rows):
            splits[row] = split
    return with_splits(records, splits).noting(_notes(records.class_names, train, val, shots, split_seed))


def _notes(
    class_names: Sequence[str], train: list[list[int]], val: list[list[int]], shots: int, split_seed: int
) -> list[str]:
    wanted = min(shots, VALIDATION_SHOTS)
    notes = [
        f"data.shots={shots}, data.split_seed={split_seed}: {sum(map(len, train)):,} pictures train and "
        f"{sum(map(len, val)):,} validate, all drawn from train; no others are used for either"
    ]
    small = [f"{name} ({len(rows)})" for name, rows in zip(class_names, train, strict=True) if len(rows) < shots]
    if small:
        notes.append(f"{_of(small, class_names)} {_fewer(shots, 'training picture')}: {_shown(small)}")
    bare = [f"{name} ({len(rows)})" for name, rows in zip(class_names, val, strict=True) if len(rows) < wanted]
    if bare:
        notes.append(
            f"{_of(bare, class_names)} {_fewer(wanted, 'picture')} left to validate, as training is served first: "
            f"{_shown(bare)}"
        )
    return notes


def _of(some: Sequence[str], class_names: Sequence[str]) -> str:
    return f"{len(some)} of {len(class_names)} classes {'has' if len(some) == 1 else 'have'}"


def _fewer(wanted: int, what: str) -> str:
    return f"no {what}" if wanted == 1 else f"fewer than {wanted} {what}s"


def _shown(entries: Sequence[str]) -> str:
    return ", ".join(entries[:SHOWN]) + (" …" if len(entries) > SHOWN else "")
