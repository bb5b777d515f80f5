"""A classifier that reads nothing but the zero-shot logits: what does it mean that a picture looks like these classes?

Run: python -m clipkit.train approach=logits_mlp
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.losses.contrastive import scaled_cosines
from clipkit.models.heads.base import Head

__all__ = ["LogitsMLP"]


class LogitsMLP(Head):
    """An MLP with BatchNorm on the frozen zero-shot logits; started from text, it is added to them.

    C → 5C, BatchNorm, ReLU, dropout 0.25 → 5C, BatchNorm, ReLU → 5C, BatchNorm, ReLU, dropout 0.3 → C, BatchNorm.
    Its input needs the classes' sentences either way: `start_from_text` or `read_text` comes before training.

    Args:
        class_names: C names.
        embed_dim: D.
    """

    def __init__(self, class_names: Sequence[str], embed_dim: int) -> None:
        super().__init__(class_names)
        self.arguments = {"embed_dim": embed_dim}
        classes = len(self.class_names)
        wide = 5 * classes
        self.mlp = nn.Sequential(
            *(nn.Linear(classes, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(0.25)),
            *(nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.ReLU()),
            *(nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(0.3)),
        )
        self.output = nn.Linear(wide, classes)
        self.norm = nn.BatchNorm1d(classes)
        self.register_buffer("text", torch.zeros(classes, embed_dim))
        self.register_buffer("logit_scale", torch.ones(()))
        self.register_buffer("shortcut", torch.zeros(()))

    text: Tensor  # [C, D]
    logit_scale: Tensor
    shortcut: Tensor  # 1 where the zero-shot logits are added, else 0

    @torch.no_grad()
    def read_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Take the classes' prototypes [C, D] and their scale as input, and leave the MLP as it was drawn."""
        self.text.copy_(prototypes)
        self.logit_scale.fill_(logit_scale)

    @torch.no_grad()
    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin as the zero-shot classifier, see `Head`."""
        self.read_text(prototypes, logit_scale=logit_scale)
        self.shortcut.fill_(1.0)
        self.norm.weight.zero_()
        self.norm.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        if self.training and len(x) == 1 and isinstance(self.norm, nn.BatchNorm1d):  # not where it is synchronised
            raise UserError(
                "approach=logits_mlp normalises over the batch, which has 1 picture: set data.batch_size=2 or more, "
                "and train with at least 2 pictures"
            )
        zero_shot = scaled_cosines(x, self.text, logit_scale=self.logit_scale)  # [B, C]
        read: Tensor = self.norm(self.output(self.mlp(zero_shot)))
        return self.shortcut * zero_shot + read
