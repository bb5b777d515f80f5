"""Cosine prototypes: a trained direction a class, held near its sentences by as much as they are trusted (CLAP).

Run: python -m clipkit.train approach=cosine_text_init
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.losses.contrastive import scaled_cosines
from clipkit.losses.tiles import at_least_float32
from clipkit.models.heads.base import Head

__all__ = ["CosinePrototypes", "cosines", "random_prototypes"]


class CosinePrototypes(Head):
    """Logits τ·cos(x, w_k) with one trained prototype w_k a class (CLAP, arXiv 2312.12730).

    Args:
        class_names: C names.
        embed_dim: D.
        logit_scale: τ, until `start_from_text` brings the encoder's; by default where CLIP's own training begins. It is
            not trained.

    Attributes:
        pull: [C] λ_k, how strongly `penalty` holds each prototype; 0 until `trust_text`.
    """

    def __init__(self, class_names: Sequence[str], embed_dim: int, *, logit_scale: float = 1 / 0.07) -> None:
        super().__init__(class_names)
        self.arguments = {"embed_dim": embed_dim}
        self.prototypes = nn.Parameter(random_prototypes(len(self.class_names), embed_dim))
        self.register_buffer("start", self.prototypes.detach().clone())
        self.register_buffer("pull", torch.zeros(len(self.class_names)))
        self.register_buffer("logit_scale", torch.tensor(logit_scale))

    start: Tensor  # [C, D] t_k
    pull: Tensor
    logit_scale: Tensor

    @torch.no_grad()
    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin as the zero-shot classifier, see `Head`."""
        self.prototypes.copy_(prototypes)
        self.start.copy_(prototypes)
        self.logit_scale.fill_(logit_scale)

    @torch.no_grad()
    def trust_text(self, x: Tensor, labels: Tensor) -> None:
        """Set λ_k to the mean probability that the starting prototypes give class k on its own pictures.

        Args:
            x: [N, D] embeddings of the training pictures, rows of unit length.
            labels: [N]. Of a class without pictures the text is all that is known: its λ is 1.
        """
        probabilities = scaled_cosines(x, self.start, logit_scale=self.logit_scale).softmax(1)
        right = labels[:, None] == torch.arange(len(self.pull), device=labels.device)  # [N, C]
        count = right.sum(0)
        mean = (probabilities * right).sum(0) / count.clamp(min=1)
        self.pull.copy_(torch.where(count > 0, mean, 1.0))

    def penalty(self) -> Tensor:
        """mean_k λ_k‖w_k − t_k‖², to be added to the cross-entropy."""
        return (self.pull * (self.prototypes - self.start).square().sum(1)).mean()

    def forward(self, x: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        return self.logit_scale * cosines(x, self.prototypes)


def random_prototypes(classes: int, embed_dim: int) -> Tensor:
    """[C, D] random directions of unit length."""
    return normalize(torch.randn(classes, embed_dim), dim=1)


def cosines(x: Tensor, prototypes: Tensor) -> Tensor:
    """[B, D] of unit length and [C, D] of any -> [B, C], in float32 at least, also under autocast."""
    x, prototypes = at_least_float32(x, prototypes)
    return scaled_cosines(x, normalize(prototypes, dim=1), logit_scale=x.new_ones(()))
