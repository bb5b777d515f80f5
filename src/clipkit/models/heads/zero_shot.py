"""Zero-shot classification: each class is the mean embedding of sentences that name it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(nn.Module):
    """Logits are scaled cosines with one prototype per class.

    Args:
        prototypes: [C, D], rows of unit length.
        class_names: C names.
        logit_scale: the factor on the cosines (not its logarithm).
    """

    eats = "embeds"

    def __init__(self, prototypes: Tensor, *, class_names: tuple[str, ...], logit_scale: Tensor) -> None:
        super().__init__()
        self.class_names = class_names
        self.register_buffer("prototypes", prototypes.detach().clone())
        self.register_buffer("logit_scale", logit_scale.detach().clone())

    prototypes: Tensor
    logit_scale: Tensor

    @classmethod
    def from_embeds(cls, embeds: Tensor, *, class_names: tuple[str, ...], logit_scale: Tensor) -> "ZeroShotClassifier":
        """From text embeddings [C, T, D] of T sentences a class: normalise each, average, normalise again."""
        prototypes = normalize(normalize(embeds.float(), dim=-1).mean(1), dim=-1)
        return cls(prototypes, class_names=class_names, logit_scale=logit_scale)

    @classmethod
    def empty(cls, *, class_names: list[str], embed_dim: int) -> "ZeroShotClassifier":
        """The right shapes, to be filled from a saved model."""
        return cls(torch.zeros(len(class_names), embed_dim), class_names=tuple(class_names), logit_scale=torch.ones(()))

    def spec(self) -> dict[str, Any]:
        """What rebuilds this classifier before its weights are loaded."""
        return {
            "_target_": "clipkit.models.heads.zero_shot.ZeroShotClassifier.empty",
            "class_names": list(self.class_names),
            "embed_dim": self.prototypes.shape[1],
        }

    def forward(self, embeds: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        return self.logit_scale * embeds @ self.prototypes.T
