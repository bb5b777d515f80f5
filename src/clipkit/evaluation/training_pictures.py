"""What evaluators that learn from the training pictures share: whether there are any, and what is learned from."""

from typing import Literal

import numpy as np
from torch import Tensor

from clipkit.evaluation.base import Part
from clipkit.evaluation.classify import labelled

__all__ = ["Space", "can_teach", "lessons"]

Space = Literal["features", "embeds"]


def can_teach(part: Part) -> bool:
    """Whether the training split has pictures of two classes or more, none of which this part asks about."""
    if "train" in set(part.records.table["split"].to_pylist()):
        return False
    labels = part.other("train").records.labels
    return len(np.unique(labels[labels >= 0])) > 1


def lessons(part: Part, space: Space) -> tuple[Tensor, Tensor, Tensor]:
    """[N] rows of the labelled pictures, [N, F] features or embeddings, and [N] labels; on the CPU."""
    rows, labels = labelled(part)
    return rows, (part.image_embeds if space == "embeds" else part.image_features)[rows], labels
