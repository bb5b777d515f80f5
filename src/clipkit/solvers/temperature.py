"""One factor on all logits, so that probabilities are as sure as answers are right (Guo et al., arXiv 1706.04599).

Used by: python -m clipkit.train approach=gda
"""

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["fit_scale"]

FACTORS = 1e-6, 1e3  # beyond these the loss moves no more, where all answers are right or none tells anything


def fit_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor 1 / T with the least cross-entropy, 10⁻⁶ … 10³; 1 without pictures. The ranking of classes stays.

    Args:
        logits: [M, C] of pictures that nothing was fitted to.
        labels: [M].
    """
    if len(labels) == 0:
        return 1.0
    exact = logits.double()

    def loss(exponent: float) -> float:
        return cross_entropy(math.exp(exponent) * exact, labels).item()

    low, high = map(math.log, FACTORS)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3}).x)
