"""Losses: pure functions on tensors."""

from clipkit.losses.angular import angular_contrastive_loss, angular_margin_logits, check_margin
from clipkit.losses.contrastive import contrastive_loss, scaled_cosines, supervised_contrastive_loss
from clipkit.losses.gather import gather_rows
from clipkit.losses.sigmoid import sigmoid_loss
from clipkit.losses.targets import (
    GroupTargets,
    PairTargets,
    SoftTargets,
    Targets,
    positive_targets,
    soft_targets,
)

__all__ = [
    "GroupTargets",
    "PairTargets",
    "SoftTargets",
    "Targets",
    "angular_contrastive_loss",
    "angular_margin_logits",
    "check_margin",
    "contrastive_loss",
    "gather_rows",
    "positive_targets",
    "scaled_cosines",
    "sigmoid_loss",
    "soft_targets",
    "supervised_contrastive_loss",
]
