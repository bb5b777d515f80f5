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
from clipkit.metrics.clustering import clustering_metrics, silhouettes
from clipkit.metrics.intervals import bootstrap_interval
from clipkit.metrics.novelty import novelty_metrics, threshold_at
from clipkit.metrics.proportions import holm, independence, wilson_interval
from clipkit.metrics.retrieval import rank_metrics, retrieval_metrics, retrieval_ranks

__all__ = [
    "Reliability",
    "bootstrap_interval",
    "class_scores",
    "classification_intervals",
    "classification_metrics",
    "clustering_metrics",
    "confusion_counts",
    "holm",
    "independence",
    "novelty_metrics",
    "predictions",
    "rank_metrics",
    "reliability",
    "retrieval_metrics",
    "retrieval_ranks",
    "silhouettes",
    "threshold_at",
    "wilson_interval",
]
