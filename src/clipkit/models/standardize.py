"""Shift and scale each feature by the mean and spread it has on the training set."""

import torch
from torch import Tensor, nn

__all__ = ["Standardize"]


class Standardize(nn.Module):
    """(x − mean) / std per dimension. Until `fit` it changes nothing; its statistics are saved with the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("fitted", torch.tensor(False))

    mean: Tensor
    std: Tensor
    fitted: Tensor

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics of raw features [N, width]; a dimension that never varies keeps scale 1."""
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))
        self.fitted.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """[N, width] -> [N, width]."""
        return (features - self.mean) / self.std
