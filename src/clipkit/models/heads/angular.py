"""Angular-margin classification (AAMP): pull each class together, push classes apart by an angle.

Run: python -m clipkit.train approach=aamp_mlp
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from clipkit.losses.angular import angular_margin_logits, check_margin
from clipkit.losses.tiles import at_least_float32
from clipkit.models.heads.base import Head
from clipkit.models.heads.cosine import cosines, random_prototypes

__all__ = ["AngularMLP"]


class AngularMLP(Head):
    """Logits s·cos(z, w_k) of the moved embedding z = x + W₂ ReLU(W₁ x), trained with a margin (arXiv 1801.07698).

    Args:
        class_names: C names.
        embed_dim: D.
        hidden: width between the two layers; None takes D.
        scale: s, in training and afterwards.
        margin: in radians, 0 … π/2, on the right class and in training alone.
        easy_margin: a margin only where the right class is nearer than 90°.

    Raises:
        UserError: a margin outside 0 … π/2.
    """

    numbers = ("margin", "scale")

    def __init__(
        self,
        class_names: Sequence[str],
        embed_dim: int,
        *,
        hidden: int | None = None,
        scale: float = 16.0,
        margin: float = 0.25,
        easy_margin: bool = False,
    ) -> None:
        super().__init__(class_names)
        check_margin(margin)
        hidden = embed_dim if hidden is None else hidden
        self.scale, self.margin, self.easy_margin = scale, margin, easy_margin
        self.arguments = {
            "embed_dim": embed_dim,
            "hidden": hidden,
            "scale": scale,
            "margin": margin,
            "easy_margin": easy_margin,
        }
        self.hidden = nn.Linear(embed_dim, hidden)
        self.output = nn.Linear(hidden, embed_dim)
        self.prototypes = nn.Parameter(random_prototypes(len(self.class_names), embed_dim))

    @torch.no_grad()
    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin with the zero-shot cosines, see `Head`; their factor stays `scale`, which the margin is made for."""
        self.prototypes.copy_(prototypes)
        self.output.weight.zero_()
        self.output.bias.zero_()

    def training_logits(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B, D] and [B] labels -> logits [B, C] with the margin."""
        return angular_margin_logits(
            self._cosines(x), labels, scale=self.scale, margin=self.margin, easy_margin=self.easy_margin
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D], rows of unit length -> logits [B, C]."""
        return self.scale * self._cosines(x)

    def _cosines(self, x: Tensor) -> Tensor:
        (x,) = at_least_float32(x)
        moved = x + self.output(relu(self.hidden(x)))
        return cosines(normalize(moved, dim=1), self.prototypes)
