"""Classification scores in which a tie counts against the model, and how far its confidence can be believed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.metrics.intervals import bootstrap_interval

__all__ = [
    "Reliability",
    "class_scores",
    "classification_intervals",
    "classification_metrics",
    "confusion_counts",
    "predictions",
    "reliability",
]


def predictions(logits: Tensor, labels: Tensor) -> Tensor:
    """The class that each picture is taken for: a wrong one where it scores as high as the right one.

    Args:
        logits: [N, C].
        labels: [N] int64.

    Raises:
        ValueError: a logit is not finite (a NaN would win or lose every comparison).
    """
    best_wrong = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return torch.where(_ahead(logits, labels) == 0, labels, best_wrong)


def confusion_counts(labels: Tensor, predicted: Tensor, *, num_classes: int) -> Tensor:
    """[C, C] int64: pictures of class (row) that were taken for class (column)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def class_scores(counts: Tensor) -> dict[str, Tensor]:
    """`precision`, `recall`, `f1` (float64) and `support` (pictures) of each class, [C] each; 0 where undefined.

    Args:
        counts: [C, C], as `confusion_counts` gives them.
    """
    hits, support, predicted = counts.diagonal().double(), counts.sum(1), counts.sum(0)
    return {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / support.clamp(min=1),
        "f1": 2 * hits / (support + predicted).clamp(min=1),
        "support": support,
    }


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """All in 0–1.

    Args:
        logits: [N, C], N at least 1.
        labels: [N] int64.

    Returns:
        `top1`; `top5` for more than five classes; `mean_per_class`, the mean recall of the classes that occur;
        `f1_weighted`, the mean F1 weighted by pictures; `calibration_error` (see `Reliability`).
    """
    counts = confusion_counts(labels, predictions(logits, labels), num_classes=logits.shape[1])
    scores, support = class_scores(counts), counts.sum(1)
    metrics = {
        "top1": counts.diagonal().sum().item() / len(labels),
        "mean_per_class": scores["recall"][support > 0].mean().item(),
        "f1_weighted": (scores["f1"] * support).sum().item() / len(labels),
        "calibration_error": reliability(logits, labels).error,
    }
    if logits.shape[1] > 5:
        metrics["top5"] = (_ahead(logits, labels) < 5).double().mean().item()
    return metrics


def classification_intervals(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Ends of the 95 % intervals of `top1` and, for more than five classes, `top5`: `top1_low`, `top1_high` ….

    Args:
        logits: [N, C], N at least 1.
        labels: [N] int64.
    """
    ahead, ends = _ahead(logits, labels), {}
    for k in (1, 5) if logits.shape[1] > 5 else (1,):
        ends[f"top{k}_low"], ends[f"top{k}_high"] = bootstrap_interval(ahead < k)
    return ends


@dataclass(frozen=True)
class Reliability:
    """Pictures binned by the model's confidence, the largest softmax probability.

    Args:
        pictures: [bins] int64; accuracy, confidence: [bins] float64, means of a bin's pictures, 0 where it has none.
    """

    pictures: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy − confidence|, weighted by pictures (arXiv 1706.04599)."""
        gaps = (self.accuracy - self.confidence).abs() * self.pictures
        return gaps.sum().item() / int(self.pictures.sum())


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins of equal width; bin m holds confidences in ((m − 1) / bins, m / bins].

    Args:
        logits: [N, C].
        labels: [N] int64.
        bins: how many.
    """
    confidence = logits.double().softmax(1).amax(1)
    right = (_ahead(logits, labels) == 0).double()
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    pictures = torch.bincount(place, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.double).index_add_(0, place, values) for values in (right, confidence)]
    return Reliability(pictures, *(total / pictures.clamp(min=1) for total in sums))


def _ahead(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] the number of wrong classes that score at least as high as the right one."""
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity: accuracy would be meaningless")
    return (logits >= logits.gather(1, labels[:, None])).sum(1) - 1  # the right class itself does not count
