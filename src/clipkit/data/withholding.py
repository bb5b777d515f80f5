"""Classes that a run must not see: what is trained and validated without them is asked about them afterwards.

Run: python -m clipkit.train data=emoji 'data.withhold=[animal bird,food fruit]'
     python -m clipkit.train data=emoji data.withhold=0.25
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.randomness import permutation
from clipkit.data.records import Records
from clipkit.errors import UserError

__all__ = ["withhold"]

SHOWN = 8  # classes named in a note
LISTED = 60  # class names listed in an error


def withhold(
    records: Records, classes: Sequence[str] | float, *, seed: int = 1, key: str = "data.withhold"
) -> tuple[Records, Records]:
    """Divide a data set into the classes that stay, and those that are withheld, each with labels of its own.

    Pictures without a class stay. Which classes a share withholds follows from their names and the seed alone.

    Args:
        records: of all splits.
        classes: names of classes, or the share of the classes to be drawn, between 0 and 1.
        seed: of the draw.
        key: what `classes` are called in messages.

    Returns:
        What stays, with a note that says what was left out, and what is withheld.

    Raises:
        UserError: there are no labels; an unknown name; nothing to withhold; or fewer than two classes would stay.
    """
    names = records.class_names
    asked = classes if isinstance(classes, float | int) else "[" + ", ".join(map(str, classes)) + "]"
    said = f"{key}={asked}"
    if not (records.labels >= 0).any() or not names:
        raise UserError(
            f"{said} leaves out classes, and {records.name} has no labels: use data with classes (data=emoji, "
            "data=folder, data=pairs with data.label_column=COLUMN)"
        )
    chosen = _drawn(names, classes, seed, said) if isinstance(classes, float | int) else _named(names, classes, said)
    if not chosen:
        raise UserError(f"{said}: no class is named (null: none is withheld)")
    if len(names) - len(chosen) < 2:
        raise UserError(f"{said}: of {len(names)} classes {len(chosen)} would go, and two or more have to stay")
    out = np.isin(records.labels, sorted(chosen))
    kept = [number for number in range(len(names)) if number not in chosen]
    gone = [names[number] for number in sorted(chosen)]
    shown = ", ".join(gone[:SHOWN]) + (" …" if len(gone) > SHOWN else "")
    note = f"{said}: {len(gone)} of {len(names)} classes, {int(out.sum()):,} pictures, are left out: {shown}"
    return _of_classes(records, ~out, kept).noting([note]), _of_classes(records, out, sorted(chosen))


def _named(names: Sequence[str], classes: Sequence[str], said: str) -> set[int]:
    places = {name: number for number, name in enumerate(names)}
    for name in map(str, classes):
        if name not in places:
            near = get_close_matches(name, names, n=1)
            hint = f", {near[0]!r} perhaps" if near else ""
            listed = ", ".join(names[:LISTED]) + (" …" if len(names) > LISTED else "")
            raise UserError(f"{said}: there is no class {name!r}{hint}; there are: {listed}")
    return {places[str(name)] for name in classes}


def _drawn(names: Sequence[str], share: float, seed: int, said: str) -> set[int]:
    if not 0 < share < 1:
        raise UserError(f"{said}: a share between 0 and 1 is expected, or a list of class names")
    by_name = sorted(range(len(names)), key=lambda number: names[number])
    order = permutation(seed, 0, len(names), purpose="withhold")
    return {by_name[place] for place in order[: max(1, round(share * len(names)))].tolist()}


def _of_classes(records: Records, rows: NDArray[np.bool_], classes: Sequence[int]) -> Records:
    """These rows, their labels counted anew among these classes."""
    new = np.full(len(records.class_names) + 1, -1)
    new[list(classes)] = np.arange(len(classes))
    labels = new[records.labels[rows]]  # −1 finds the last entry
    table = records.table.filter(pa.array(rows))
    index = table.column_names.index("label")
    table = table.set_column(index, "label", pa.array(labels, pa.int64())).combine_chunks()
    return replace(records, table=table, class_names=tuple(records.class_names[number] for number in classes))
