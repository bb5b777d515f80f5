"""Tip-Adapter's classifier (arXiv 2207.09519): zero-shot logits and a memory of labelled pictures.

Made by: python -m clipkit.train approach=tip_adapter
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipkit.models.heads.base import Head
from clipkit.solvers.tip_adapter import memory_logits

__all__ = ["TipAdapter"]


class TipAdapter(Head):
    """Logits s·f Wᵀ + α·exp(−β (1 − f Kᵀ))·V; s is 100 in the paper. The keys K are its only weights.

    Args:
        class_names: C names.
        num_keys: N labelled pictures in memory.
        embed_dim: D of pictures and texts.
    """

    def __init__(self, class_names: Sequence[str], *, num_keys: int, embed_dim: int) -> None:
        super().__init__(class_names)
        self.arguments = {"num_keys": num_keys, "embed_dim": embed_dim}
        self.keys = nn.Parameter(torch.zeros(num_keys, embed_dim))
        self.register_buffer("values", torch.zeros(num_keys, dtype=torch.long))  # classes: V, without its zeros
        self.register_buffer("prototypes", torch.zeros(len(self.class_names), embed_dim))
        self.register_buffer("logit_scale", torch.tensor(100.0))
        self.register_buffer("alpha", torch.tensor(1.0))
        self.register_buffer("beta", torch.tensor(5.5))

    values: Tensor
    prototypes: Tensor
    logit_scale: Tensor
    alpha: Tensor
    beta: Tensor

    @torch.no_grad()
    def remember(self, keys: Tensor, values: Tensor) -> None:
        """Fill the memory: embeddings [N, D], rows of unit length, and their classes [N]."""
        self.keys.copy_(keys)
        self.values.copy_(values)

    def blend(self, alpha: float, beta: float) -> None:
        """How much the memory counts beside the texts (0: nothing), and how fast closeness falls with distance."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Answer as the zero-shot classifier, until `blend` says how much the memory counts beside it."""
        self.alpha.zero_()
        self.prototypes.copy_(prototypes)
        self.logit_scale.fill_(logit_scale)

    def text_logits(self, embeds: Tensor) -> Tensor:
        """[B, D], rows of unit length -> zero-shot logits [B, C]."""
        return self.logit_scale * embeds @ self.prototypes.T

    def forward(self, embeds: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        memory = memory_logits(embeds, self.keys, self.values, num_classes=len(self.class_names), beta=self.beta)
        return self.text_logits(embeds) + self.alpha * memory
