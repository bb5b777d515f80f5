"""Classification: the model's own answer, by its classifier, or zero-shot with the data's templates.

Run: python -m clipkit.evaluate model=outputs/…/model evaluators=[classify]
"""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import classification_report
from torch import Tensor, nn

from clipkit.data.records import Records
from clipkit.evaluation.base import Evaluator, Part, Result
from clipkit.evaluation.confusions import confused_pairs, confused_pictures
from clipkit.metrics import (
    Reliability,
    classification_intervals,
    classification_metrics,
    confusion_counts,
    predictions,
    reliability,
)
from clipkit.models.heads.base import eaten
from clipkit.plots import class_bars, confused_pairs_grid, confusion_matrix, reliability_diagram

__all__ = [
    "Classify",
    "calibration_figure",
    "class_logits",
    "has_classes",
    "labelled",
    "measured",
    "own_classifier",
    "report",
]


class Classify(Evaluator):
    """`top1`, `top5`, `mean_per_class`, `f1_weighted` and `calibration_error`, all in 0–1 (`clipkit.metrics`).

    `top1_low` and `top1_high` are the ends of its 95 % interval when the pictures are drawn anew; so for `top5`.

    Every class of the data set is a possible answer, also one without a picture in this part. A wrong class with the
    same score as the right one counts as standing before it: in the numbers, the tables and the figures alike.

    Tables: `classification_report` (of the classes that occur or were an answer, and scikit-learn's averages),
    `confusion` (each row a class's shares), `confused_pairs` (all of them, most frequent first), `calibration`.
    """

    after_training = True

    def fits(self, records: Records) -> bool:
        return has_classes(records)

    def run(self, part: Part) -> Result:
        names = part.records.class_names
        rows, labels = labelled(part)
        logits = class_logits(part, own_classifier(part))[rows]
        predicted = predictions(logits, labels)
        counts = confusion_counts(labels, predicted, num_classes=len(names)).numpy()
        met = np.flatnonzero(counts.sum(0) + counts.sum(1))  # classes that occur or were an answer
        met_names, met_counts = [names[index] for index in met], counts[np.ix_(met, met)]
        pairs, bins = confused_pairs(names, counts), reliability(logits, labels)
        tables = {
            "classification_report": report(labels.numpy(), predicted.numpy(), names),
            "confusion": _shares(met_names, met_counts),
            "confused_pairs": pairs,
            "calibration": _calibration(bins),
        }
        if not part.draws:
            return Result(measured(logits, labels), tables)
        occurs = counts.sum(1) > 0
        recalls = counts.diagonal()[occurs] / counts.sum(1)[occurs]
        figures = {
            "classes": class_bars(
                [name for name, there in zip(names, occurs, strict=True) if there],
                recalls.tolist(),
                title="Accuracy by class",
            ),
            "confusion": confusion_matrix(met_names, met_counts),
            "calibration": calibration_figure(bins),
        }
        if len(pairs):
            shown, columns = confused_pictures(part, rows, labels, predicted, logits)
            figures["confused"] = confused_pairs_grid(shown, columns=columns)
        return Result(measured(logits, labels), tables, figures)


def has_classes(records: Records) -> bool:
    """Whether there is something to classify: two classes or more, and a picture with a label."""
    return len(records.class_names) > 1 and len(records) > 0 and bool((records.labels >= 0).any())


def labelled(part: Part) -> tuple[Tensor, Tensor]:
    """[N] rows of the pictures that have a label, and [N] their labels."""
    labels = torch.from_numpy(part.records.labels)
    rows = (labels >= 0).nonzero().flatten()
    return rows, labels[rows]


def own_classifier(part: Part) -> nn.Module:
    """The model's own classifier where its classes are the data's, else the zero-shot one."""
    own, names = part.model.classifier, part.records.class_names
    if own is not None and tuple(own.class_names) == names:  # type: ignore[arg-type]  # a Classifier's
        return own
    return part.zero_shot


def class_logits(part: Part, classifier: nn.Module) -> Tensor:
    """[N, C] of all pictures of the part, float32, on the CPU."""
    inputs = eaten(classifier, part.image_features, lambda _: part.image_embeds)
    with torch.inference_mode():
        logits: Tensor = classifier(inputs.to(part.model.device)).float().cpu()
    return logits


def measured(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """All numbers about [N, C] logits and [N] labels, with the intervals."""
    return classification_metrics(logits, labels) | classification_intervals(logits, labels)


def report(labels: NDArray[np.int64], predicted: NDArray[np.int64], names: tuple[str, ...]) -> pd.DataFrame:
    """scikit-learn's report as a table: precision, recall, F1 and pictures of each class, and the averages."""
    found = classification_report(labels, predicted, output_dict=True, zero_division=0)
    found["accuracy"] = {"f1-score": found["accuracy"], "support": len(labels)}
    rows = [{"class": names[int(key)] if key.isdigit() else key, **scores} for key, scores in found.items()]
    table = pd.DataFrame(rows)[["class", "precision", "recall", "f1-score", "support"]]
    return table.rename(columns={"f1-score": "f1"}).astype({"support": int})


def calibration_figure(bins: Reliability) -> Figure:
    """How sure against how right, bin by bin."""
    return reliability_diagram(bins.pictures.numpy(), bins.accuracy.numpy(), bins.confidence.numpy(), error=bins.error)


def _shares(names: list[str], counts: NDArray[np.int64]) -> pd.DataFrame:
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)  # empty cells for a class without pictures
    table = pd.DataFrame(shares, columns=names)
    for name, column in (("pictures", counts.sum(1)), ("class", names)):
        table.insert(0, name, column, allow_duplicates=True)  # a class may have that name
    return table


def _calibration(bins: Reliability) -> pd.DataFrame:
    edges = np.linspace(0, 1, len(bins.pictures) + 1)
    columns = {"pictures": bins.pictures, "accuracy": bins.accuracy, "confidence": bins.confidence}
    table = pd.DataFrame({"above": edges[:-1], "up_to": edges[1:], **{k: v.numpy() for k, v in columns.items()}})
    return table[table["pictures"] > 0]
