"""Typographic attack: does the model follow a word that is written on the picture? (Goh et al., Distill 2021.)

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[typographic] typographic.max_pictures=500
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.randomness import uniform
from clipkit.data.records import Records
from clipkit.data.typography import Writing, writable, write, writings
from clipkit.evaluation.altered import altered_logits, check_max_pictures, labelled_sample
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.classify import class_logits, has_classes, own_classifier
from clipkit.metrics import predictions
from clipkit.plots import AttackedPicture, attack_grid

__all__ = ["Typographic"]

SHOWN = 12


class Typographic(Evaluator):
    """Accuracy before and after the name of another class is written on each picture, by the model's own answer.

    `top1_before`, `top1_after` and `drop` (the first less the second); `follows_word`, the share of the attacked
    pictures for which the written class alone scores highest, and to compare with it `said_word_before`, the share for
    which it did so without being written; `pictures`. Word, font, size, place and look are functions of (seed, image
    id). Words are drawn evenly from the names that all fonts can write. The table `pictures` has one row a picture.

    Args:
        max_pictures: at most so many pictures are attacked, a sample by seed; None: all.
    """

    name = "typographic"

    def __init__(self, *, max_pictures: int | None = 2000) -> None:
        self.max_pictures = check_max_pictures(self.name, max_pictures)

    def fits(self, records: Records) -> bool:
        return has_classes(records) and len({_plain(name) for name in _words(records)}) > 1

    def run(self, part: Part) -> Result:
        sample = labelled_sample(part, self.max_pictures)
        names, ids = sample.records.class_names, sample.records.image_ids
        labels = torch.from_numpy(sample.records.labels)
        words = _other_words(names, sample.records.labels, sample.data.seed, ids)
        ways = writings(sample.data.seed, ids)

        def attacked(squares: Tensor, rows: NDArray[np.int64]) -> Tensor:
            texts = [names[words[row]] for row in rows]
            return torch.stack([write(*one) for one in zip(squares, texts, [ways[r] for r in rows], strict=True)])

        classifier = own_classifier(part)
        before = class_logits(sample, classifier)
        after = altered_logits(sample, classifier, attacked, what="pictures with words")
        said, now = predictions(before, labels), predictions(after, labels)
        written = torch.from_numpy(words)
        follows = _alone_on_top(after, written)
        scores = {"top1_before": said == labels, "top1_after": now == labels}
        metrics = {name: right.double().mean().item() for name, right in scores.items()}
        metrics["drop"] = metrics["top1_before"] - metrics["top1_after"]
        metrics["follows_word"] = follows.double().mean().item()
        metrics["said_word_before"] = _alone_on_top(before, written).double().mean().item()
        metrics["pictures"] = float(len(ids))
        table = _table(sample, words, ways, said, now, follows)
        return Result(metrics, {"pictures": table}, {"pictures": _figure(sample, table, attacked)})


def _words(records: Records) -> list[str]:
    return [name for name, fine in zip(records.class_names, writable(records.class_names), strict=True) if fine]


def _plain(name: str) -> str:
    """Two classes whose names differ in case or blanks alone are the same word."""
    return " ".join(name.casefold().split())


def _other_words(
    names: Sequence[str], labels: NDArray[np.int64], seed: int, ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[N] for each picture the class whose name is written on it: never one that is called like its own."""
    plain = np.array([_plain(name) for name in names])
    pool = np.flatnonzero(writable(names))
    draws = uniform(seed, 0, ids, 1, purpose="written word")[:, 0]
    others = {label: pool[plain[pool] != plain[label]] for label in np.unique(labels).tolist()}
    chosen = [others[label][int(draw * len(others[label]))] for label, draw in zip(labels.tolist(), draws, strict=True)]
    return np.array(chosen, np.int64)


def _alone_on_top(logits: Tensor, classes: Tensor) -> Tensor:
    """[N] whether a class scores higher than every other: a model without an opinion follows nothing."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return own > logits.scatter(1, classes[:, None], -torch.inf).amax(1)


def _table(
    part: Part, words: NDArray[np.int64], ways: Sequence[Writing], said: Tensor, now: Tensor, follows: Tensor
) -> pd.DataFrame:
    names, records = part.records.class_names, part.records
    return pd.DataFrame(
        {
            "image": [records.image_name(row) for row in range(len(records))],
            "label": [names[label] for label in records.labels],
            "word": [names[word] for word in words],
            "place": [way.place for way in ways],
            "font": [way.font for way in ways],
            "size": [round(way.size, 3) for way in ways],
            "look": [way.look for way in ways],
            "before": [names[index] for index in said],
            "after": [names[index] for index in now],
            "right_before": said.numpy() == records.labels,
            "right_after": now.numpy() == records.labels,
            "follows_word": follows.numpy(),
        }
    )


def _figure(part: Part, table: pd.DataFrame, attacked: Callable[[Tensor, NDArray[np.int64]], Tensor]) -> Figure:
    """A fixed, unpicked sample: evenly spread over the pictures."""
    rows = np.unique(((np.arange(SHOWN) + 0.5) * len(table) / SHOWN).astype(np.int64))
    squares = part.data.pixels(part.records.image_ids[rows])
    changed = attacked(squares, rows)
    shown = [
        AttackedPicture(
            *(square.permute(1, 2, 0).numpy() for square in pair),
            **table.iloc[row][["label", "word", "before", "after", "right_before", "right_after", "follows_word"]],
        )
        for row, *pair in zip(rows, squares, changed, strict=True)
    ]
    return attack_grid(shown)
