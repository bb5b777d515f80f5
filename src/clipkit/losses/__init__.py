"""Losses: pure functions on tensors."""

from clipkit.losses.contrastive import contrastive_loss, scaled_cosines, supervised_contrastive_loss
from clipkit.losses.targets import positive_targets, soft_targets

__all__ = ["contrastive_loss", "positive_targets", "scaled_cosines", "soft_targets", "supervised_contrastive_loss"]
