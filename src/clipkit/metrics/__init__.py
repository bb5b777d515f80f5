"""Scores that torchmetrics and scikit-learn lack."""

from clipkit.metrics.retrieval import retrieval_metrics, retrieval_ranks

__all__ = ["retrieval_metrics", "retrieval_ranks"]
