"""Which classes are taken for which, and pictures that show it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.evaluation.base import Part
from clipkit.plots import ConfusedPair

__all__ = ["confused_pairs", "confused_pictures"]

PAIRS, MISTAKES = 6, 5  # shown


def confused_pairs(names: Sequence[str], counts: NDArray[np.int64]) -> pd.DataFrame:
    """Every pair of classes of which one was taken for the other: the most pictures first, then the largest share.

    Args:
        names: of C classes.
        counts: [C, C] pictures of class (row) taken for class (column).

    Returns:
        `class`, `taken_for`, `count`, `pictures` (of the class) and `share` (of those).
    """
    true, other = np.nonzero(counts * (1 - np.eye(len(counts), dtype=np.int64)))
    often, pictures = counts[true, other], counts.sum(1)[true]
    table = pd.DataFrame(
        {
            "class": [names[int(index)] for index in true],
            "taken_for": [names[int(index)] for index in other],
            "count": often,
            "pictures": pictures,
            "share": often / pictures,
        }
    )
    return table.sort_values(["count", "share"], ascending=False, kind="stable")


def confused_pictures(
    part: Part, rows: Tensor, labels: Tensor, predicted: Tensor, logits: Tensor
) -> tuple[list[ConfusedPair], int]:
    """The most frequent pairs with pictures: the surest mistakes, and what the other class looks like.

    That is the picture of the other class that is told most surely, or failing that the one that comes nearest.

    Args:
        part: where the pictures are.
        rows, labels, predicted: [N] places in the part, right classes and answers.
        logits: [N, C].

    Returns:
        Up to six pairs for `clipkit.plots.confused_pairs_grid`, and how many mistakes the longest row shows.
    """
    names, sure = part.records.class_names, logits.softmax(1)
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    counts.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    table = confused_pairs(range(len(names)), counts.numpy()).head(PAIRS)  # type: ignore[arg-type]  # numbers as names
    shown: list[ConfusedPair] = []
    for true, other, count, pictures in table[["class", "taken_for", "count", "pictures"]].itertuples(index=False):
        mistakes = ((labels == true) & (predicted == other)).nonzero().flatten()
        mistakes = mistakes[sure[mistakes, other].argsort(descending=True, stable=True)][:MISTAKES]
        others = (labels == other).nonzero().flatten()
        best = others[sure[others, other].argmax()] if len(others) else None
        shown.append(
            (
                names[true],
                names[other],
                f"{count} of {pictures} ({count / pictures:.0%})",
                part.pictures(rows[mistakes].tolist()),
                None if best is None else part.pictures([int(rows[best])])[0],
            )
        )
    return shown, max((len(pair[3]) for pair in shown), default=0)
