"""What validation pictures say of the model that a run hands on, in `metrics.json` beside the final numbers.

Used by: clipkit.train, and the trials of clipkit.sweep
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import cross_entropy

from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.evaluation import Part
from clipkit.evaluation.classify import class_logits, has_classes, labelled, own_classifier
from clipkit.features.frozen import FrozenFeatures
from clipkit.metrics import classification_metrics
from clipkit.models.model import Model

__all__ = ["validation_scores"]


def validation_scores(
    known: Mapping[str, float], model: Model, data: PairData, *, stored: FrozenFeatures | None = None
) -> dict[str, float]:
    """What the stages said, and where none of them was a head's `val/loss`, `val/top1`, `val/f1_weighted` of it.

    Args:
        known: what the stages said of the weights that are handed on.
        model: the finished one.
        data: whose validation pictures are asked about.
        stored: the store, where the image tower is as it was before training.

    Returns:
        `known` alone for a model without a classifier, a stream, or data without labelled validation pictures.
    """
    asked = "val/f1_weighted" in known or model.classifier is None or isinstance(data, StreamData)
    if asked or not has_classes(data.split("val")):
        return dict(known)
    part = Part(model, data, data.split("val"), lambda what, done, count: None, stored=stored)
    rows, labels = labelled(part)
    logits = class_logits(part, own_classifier(part))[rows]
    if not torch.isfinite(logits).all():
        return dict(known)
    metrics = classification_metrics(logits, labels)
    return {
        "val/loss": float(cross_entropy(logits, labels)),
        "val/top1": metrics["top1"],
        "val/f1_weighted": metrics["f1_weighted"],
        **known,
    }
