"""Asking a classifier about every picture of a gallery, batch by batch: what it answers goes to a table at once."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clipkit.data.decoding import Broken, available_cores
from clipkit.data.gallery import Gallery, pixel_batches
from clipkit.errors import UserError
from clipkit.models.model import Model
from clipkit.runs.csv_file import csv_file
from clipkit.runs.record import Run
from clipkit.runs.unreadable import refuse_without_pictures
from clipkit.templates import fill_template

__all__ = ["Answer", "Predictions", "choose_classifier", "predict", "refuse_unaligned"]

ALL_LABELS = 50  # so many have a column each
BEST_LABELS = 5  # of more
SHOWN = 200  # pictures on the page
WAYS_OUT = "give an own contrastive run, emoji_clip, hf:NAME or open_clip:ARCH/TAG"


@dataclass(frozen=True)
class Answer:
    """A picture and its best labels, with their probabilities, best first."""

    picture: str
    best: list[tuple[str, float]]


@dataclass
class Predictions:
    """What was found, as far as a page and a screen show it.

    Args:
        labels: C labels.
        total: how many pictures were named.
        shown: a sample of the answers, spread evenly over the pictures.
        counts: how often each label came first.
        sure: the sum of the best probabilities, by label.
        broken: pictures that cannot be read, and why.
    """

    labels: tuple[str, ...]
    total: int
    shown: list[Answer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sure: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    broken: list[Broken] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.counts.total()

    def by_label(self) -> list[tuple[str, int, float]]:
        """The labels that came first somewhere: how often, and the mean of their probabilities there."""
        return [(label, count, self.sure[label] / count) for label, count in self.counts.most_common()]


def choose_classifier(
    model: Model, labels: Sequence[str] | None, templates: Sequence[str] | None
) -> tuple[nn.Module, list[str]]:
    """Who answers, and what is to be said of that.

    Args:
        model: whose towers, or own classifier, answer.
        labels: for a zero-shot answer; None: the model's own classifier.
        templates: sentences that labels are put into; None: the model's own.

    Raises:
        UserError: the model has no classifier of its own, or its towers do not know each other.
    """
    if labels is None:
        if model.classifier is None:
            raise UserError('this model has no classifier of its own: say what to choose from, labels="a cat,a dog"')
        names: Any = model.classifier.class_names
        return model.classifier, [f"the model's own classifier answers, with {len(names):,} labels"]
    refuse_unaligned(model, "labels")
    sentences = tuple(model.templates if templates is None else templates)
    said = [f'"{labels[0]}" is asked as "{fill_template(sentences[0], labels[0])}"']
    if len(sentences) > 1:
        said[0] += f" and in {len(sentences) - 1} sentences more"
    if templates is None and sentences != ("{}",):
        said[0] += '; templates=["{}"] takes labels as they are'
    return model.zero_shot(labels, templates=sentences), said


def refuse_unaligned(model: Model, what: str) -> None:
    """`UserError` where words say nothing about pictures: the towers have never been trained together."""
    if not model.encoder.aligned:
        raise UserError(f"the towers of this model have not been trained together, so {what} say nothing: {WAYS_OUT}")


def predict(
    model: Model,
    classifier: nn.Module,
    gallery: Gallery,
    run: Run,
    *,
    top: int | None = None,
    batch_size: int = 64,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Predictions:
    """Write a row a picture to `predictions.csv`: its name, best label, and that label's probability; then the others.

    Up to 50 labels have a column each, `p(LABEL)`; of more, or with `top`, the best follow as `label_2`,
    `probability_2`, and so on.

    Args:
        model, classifier: who answers.
        gallery: the pictures.
        run: in whose folder the table appears when it is complete; broken pictures are listed there, too.
        top: how many labels a row has; None: all if they are 50 or fewer, else 5.
        batch_size: pictures at a time.
        on_progress: called with (what, done, total).

    Raises:
        UserError: no picture can be read, the model gives NaN, or the file cannot be written.
    """
    names: Any = classifier.class_names
    labels = tuple(names)
    found = Predictions(labels, len(gallery))
    best = min(top if top is not None else BEST_LABELS, len(labels))
    each = top is None and len(labels) <= ALL_LABELS
    chosen = {gallery.names[place] for place in _spread(len(gallery), SHOWN)}
    with csv_file(run.folder / "predictions.csv") as rows:
        rows.writerow(["picture", "label", "probability", *_further_columns(labels, best, each)])
        for name, probabilities, ranks in _ask(model, classifier, gallery, found, batch_size, on_progress):
            first, sure = labels[ranks[0]], float(probabilities[ranks[0]])
            found.counts[first] += 1
            found.sure[first] += sure
            rows.writerow([name, first, _number(sure), *_further(labels, probabilities, ranks[:best], each)])
            if name in chosen:
                shown = [(labels[index], float(probabilities[index])) for index in ranks[:BEST_LABELS]]
                found.shown.append(Answer(name, shown))
        listing = run.write_broken(found.broken)
        refuse_without_pictures(found.broken, len(gallery), listing)
    return found


def _ask(
    model: Model,
    classifier: nn.Module,
    gallery: Gallery,
    found: Predictions,
    batch_size: int,
    on_progress: Callable[[str, int, int], None] | None,
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Each readable picture's name, its probabilities [C], and the numbers of the labels, best first."""
    done = 0
    for batch in pixel_batches(gallery, model.encoder.preprocess, batch_size=batch_size, threads=available_cores()):
        if batch.names:
            probabilities = model.probabilities(batch.pixels.to(model.device), classifier).float().cpu().numpy()
            if not np.isfinite(probabilities).all():
                raise UserError("the model gives NaN or infinity for pictures: its weights or precision are broken")
            order = np.argsort(-probabilities, axis=1, kind="stable")  # of equal ones the label given first
            yield from zip(batch.names, probabilities, order, strict=True)
        found.broken += batch.broken
        done += len(batch.names) + len(batch.broken)
        if on_progress is not None:
            on_progress("looking at pictures", done, len(gallery))


def _further_columns(labels: Sequence[str], best: int, each: bool) -> list[str]:
    if each:
        return [f"p({label})" for label in labels]
    return [name for rank in range(2, best + 1) for name in (f"label_{rank}", f"probability_{rank}")]


def _further(labels: Sequence[str], row: NDArray[Any], ranks: NDArray[Any], each: bool) -> list[str]:
    if each:
        return [_number(value) for value in row]
    return [text for rank in ranks[1:] for text in (labels[rank], _number(row[rank]))]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` places spread evenly over `count`, the first among them; all if there are no more."""
    return np.unique(np.arange(min(wanted, count)) * count // max(1, min(wanted, count)))
