"""From a tower's features to the shared embedding space."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

__all__ = [
    "IdentityProjection",
    "LinearMLPProjection",
    "LinearProjection",
    "MLPProjection",
    "ResidualMLPProjection",
    "linear_projection",
    "mlp_projection",
]


class IdentityProjection(nn.Module):
    """The tower's feature is the embedding (SigLIP; CLIP's ResNets, whose pooling projects)."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        self.embed_dim = in_features

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> the same."""
        return features


class LinearProjection(nn.Module):
    """Dropout, then one linear layer (CLIP's is `LinearProjection(F, D)`, without bias)."""

    def __init__(self, in_features: int, embed_dim: int, *, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.arguments: dict[str, Any] = {"embed_dim": embed_dim, "dropout": dropout, "bias": bias}
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, embed_dim, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B, embed_dim], not normalised."""
        projected: Tensor = self.linear(self.dropout(features))
        return projected


class MLPProjection(nn.Module):
    """Linear, GELU, linear: the projection of some open_clip models.

    Args:
        bias: of the first and of the second layer.
    """

    def __init__(
        self, in_features: int, embed_dim: int, *, hidden: int, bias: tuple[bool, bool] = (True, False)
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.arguments: dict[str, Any] = {"embed_dim": embed_dim, "hidden": hidden, "bias": list(bias)}
        self.input = nn.Linear(in_features, hidden, bias=bias[0])
        self.output = nn.Linear(hidden, embed_dim, bias=bias[1])

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B, embed_dim], not normalised."""
        projected: Tensor = self.output(gelu(self.input(features)))
        return projected


class ResidualMLPProjection(nn.Module):
    """`p = Linear(x); LayerNorm(p + Dropout(Linear(GELU(p))))`."""

    def __init__(self, in_features: int, embed_dim: int, *, dropout: float = 0.1, bias: bool = True) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.arguments: dict[str, Any] = {"embed_dim": embed_dim, "dropout": dropout, "bias": bias}
        self.input = nn.Linear(in_features, embed_dim, bias=bias)
        self.hidden = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B, embed_dim], not normalised."""
        projected = self.input(features)
        output: Tensor = self.norm(projected + self.dropout(self.hidden(gelu(projected))))
        return output


class LinearMLPProjection(nn.Module):
    """A linear layer plus a two-layer MLP whose last layer starts at zero: `Linear(x) + W₂ GELU(W₁ x)`.

    It begins as the linear projection and bends only as far as the data asks. Dropout is applied to the features.
    """

    def __init__(
        self, in_features: int, embed_dim: int, *, hidden: int = 512, dropout: float = 0.5, bias: bool = True
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.arguments: dict[str, Any] = {"embed_dim": embed_dim, "hidden": hidden, "dropout": dropout, "bias": bias}
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, embed_dim, bias=bias)
        self.hidden = nn.Linear(in_features, hidden, bias=bias)
        self.output = nn.Linear(hidden, embed_dim, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B, embed_dim], not normalised."""
        dropped = self.dropout(features)
        bent: Tensor = self.linear(dropped) + self.output(gelu(self.hidden(dropped)))
        return bent


def linear_projection(weight: Tensor, bias: Tensor | None) -> LinearProjection:
    """[D, F] weights as a projection."""
    layer = LinearProjection(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.linear.weight.copy_(weight)
        if bias is not None:
            layer.linear.bias.copy_(bias)
    return layer


def mlp_projection(first: nn.Linear, second: nn.Linear) -> MLPProjection:
    """Two layers that exist already, with GELU between them, as a projection."""
    bias = (first.bias is not None, second.bias is not None)
    layer = MLPProjection(first.in_features, second.out_features, hidden=first.out_features, bias=bias)
    layer.input, layer.output = first, second
    return layer
