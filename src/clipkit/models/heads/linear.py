"""A linear classifier: logistic regression, LP++, or any other weights and biases.

Made by: python -m clipkit.train approach=linear_probe (or lp_plus_plus)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipkit.models.heads.base import Eats, Head

__all__ = ["LinearHead"]


class LinearHead(Head):
    """Logits x Wᵀ + b.

    What was added to the logits where the weights were fitted is folded in: the scaling of the features, and zero-shot
    logits, which are linear in the embeddings too.

    Args:
        class_names: C names.
        in_features: width of x.
        eats: "embeds", "features" or "both".
    """

    def __init__(self, class_names: Sequence[str], *, in_features: int, eats: Eats = "embeds") -> None:
        super().__init__(class_names)
        self.eats = eats
        self.arguments = {"in_features": in_features, "eats": eats}
        self.weight = nn.Parameter(torch.zeros(len(self.class_names), in_features))
        self.bias = nn.Parameter(torch.zeros(len(self.class_names)))

    @torch.no_grad()
    def fill(
        self, weights: Tensor, bias: Tensor | None = None, *, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        """Take weights [C, F] and biases [C] that were fitted to (x − mean) / std, with mean and std [F]."""
        folded = weights.double() if std is None else weights.double() / std.double()
        own = torch.zeros(len(weights), dtype=torch.float64, device=weights.device) if bias is None else bias.double()
        self.weight.copy_(folded)
        self.bias.copy_(own if mean is None else own - folded @ mean.double())

    @torch.no_grad()
    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin as the zero-shot classifier."""
        if self.eats != "embeds":
            raise ValueError("only embeddings can be compared with texts: a head that eats features cannot start there")
        self.weight.copy_(logit_scale * prototypes)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> logits [B, C]."""
        return x @ self.weight.T + self.bias
