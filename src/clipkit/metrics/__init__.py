"""Scores that torchmetrics and scikit-learn lack, or that count ties otherwise."""

from clipkit.metrics.classification import (
    Reliability,
    class_scores,
    classification_metrics,
    confusion_counts,
    predictions,
    reliability,
)
from clipkit.metrics.retrieval import retrieval_metrics, retrieval_ranks

__all__ = [
    "Reliability",
    "class_scores",
    "classification_metrics",
    "confusion_counts",
    "predictions",
    "reliability",
    "retrieval_metrics",
    "retrieval_ranks",
]
