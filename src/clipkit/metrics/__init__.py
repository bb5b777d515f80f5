"""Scores that torchmetrics and scikit-learn lack, or that count ties otherwise."""

from clipkit.metrics.classification import (
    Reliability,
    class_scores,
    classification_intervals,
    classification_metrics,
    confusion_counts,
    predictions,
    reliability,
)
from clipkit.metrics.intervals import bootstrap_interval
from clipkit.metrics.proportions import holm, independence, wilson_interval
from clipkit.metrics.retrieval import rank_metrics, retrieval_metrics, retrieval_ranks

__all__ = [
    "Reliability",
    "bootstrap_interval",
    "class_scores",
    "classification_intervals",
    "classification_metrics",
    "confusion_counts",
    "holm",
    "independence",
    "predictions",
    "rank_metrics",
    "reliability",
    "retrieval_metrics",
    "retrieval_ranks",
    "wilson_interval",
]
