"""Similarity heat map of labelled pictures and class names: for data without captions of their own.

Run: python -m clipkit.evaluate model=emoji_clip data=folder data.root=pictures evaluators=[similarity]
"""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import has_classes
from clipkit.plots import similarity_heatmap

__all__ = ["Similarity", "class_similarity"]

SHOWN = 8


class Similarity(Evaluator):
    """The figure `classes` of `class_similarity`, and as the table `classes` the mean cosine of the pictures of each
    class with each class's sentences; no number of its own."""

    name = "similarity"
    by_default = False

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def run(self, part: Part) -> Result:
        cosines, labels = _cosines(part), part.records.labels
        occur = np.unique(labels[labels >= 0])
        means = torch.stack([cosines[torch.from_numpy(labels == label)].mean(0) for label in occur]).numpy()
        table = pd.DataFrame(means, columns=list(part.records.class_names))
        table.insert(0, "pictures of", [part.records.class_names[label] for label in occur], allow_duplicates=True)
        return Result({}, {"classes": table}, {"classes": class_similarity(part)})


def class_similarity(part: Part, *, count: int = SHOWN) -> Figure:
    """Cosines of `count` pictures, each of another class, with the names of these classes in the data's sentences.

    Classes are spread evenly over those that occur, and of each the picture in the middle is shown: unpicked.
    """
    labels = part.records.labels
    occur = np.unique(labels[labels >= 0])
    classes = occur[np.unique(((np.arange(count) + 0.5) * len(occur) / count).astype(np.int64))]
    rows = [members[len(members) // 2] for members in (np.flatnonzero(labels == label) for label in classes)]
    cosines = _cosines(part, rows)[:, torch.from_numpy(classes)]
    names = [part.records.class_names[label] for label in classes]
    return similarity_heatmap(part.pictures(rows), names, cosines.T.numpy())


def _cosines(part: Part, rows: list[int] | None = None) -> torch.Tensor:
    """[N, C] of the pictures (or some rows of them) with the sentences of every class."""
    prototypes = part.zero_shot.prototypes
    embeds = part.image_embeds if rows is None else part.image_embeds[torch.tensor(rows)]
    return embeds @ prototypes.float().cpu().T
