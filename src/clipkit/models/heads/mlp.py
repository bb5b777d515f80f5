"""A two-layer classifier of picture embeddings, which can begin as the zero-shot one.

Run: python -m clipkit.train approach=mlp
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from clipkit.losses.contrastive import scaled_cosines
from clipkit.losses.tiles import at_least_float32
from clipkit.models.heads.base import Head

__all__ = ["MLPHead"]


class MLPHead(Head):
    """Linear(D, D/2), ReLU, Linear(D/2, C); started from text, its output is added to the zero-shot logits.

    The layers read √D·x: the entries of a row of unit length are near 1/√D, and a layer learns as slowly as its input
    is small.

    Args:
        class_names: C names.
        embed_dim: D.
    """

    def __init__(self, class_names: Sequence[str], embed_dim: int) -> None:
        super().__init__(class_names)
        self.arguments = {"embed_dim": embed_dim}
        classes, hidden = len(self.class_names), max(1, embed_dim // 2)
        self.hidden = nn.Linear(embed_dim, hidden)
        self.output = nn.Linear(hidden, classes)
        # zeros: without text there is nothing to add to
        self.register_buffer("text", torch.zeros(classes, embed_dim))
        self.register_buffer("logit_scale", torch.ones(()))

    text: Tensor  # [C, D]
    logit_scale: Tensor

    @torch.no_grad()
    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin as the zero-shot classifier, see `Head`."""
        self.text.copy_(prototypes)
        self.logit_scale.fill_(logit_scale)
        self.output.weight.zero_()
        self.output.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        (x,) = at_least_float32(x)
        zero_shot = scaled_cosines(x, self.text, logit_scale=self.logit_scale)
        logits: Tensor = zero_shot + self.output(relu(self.hidden(x * math.sqrt(x.shape[1]))))
        return logits
