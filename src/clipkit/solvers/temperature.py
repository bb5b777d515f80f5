"""One factor on all logits, so that probabilities are as sure as answers are right (Guo et al., arXiv 1706.04599).

Used by: python -m clipkit.train approach=gda
"""

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["fit_scale"]

SPREAD = 0.05, 1e3  # nats between which the logits' spread stays: where nothing is told apart, rankings remain


def fit_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor 1 / T with the least cross-entropy; 1 without pictures. The ranking of classes stays.

    The factor leaves logits with a mean spread over classes of 0.05 to 1000 nats: a classifier that is no better than a
    guess would be made uniform, and float32 could not tell its answers apart.

    Args:
        logits: [M, C] of pictures that nothing was fitted to.
        labels: [M].
    """
    if len(labels) == 0:
        return 1.0
    exact = logits.double()
    spread = exact.std(1, correction=0).mean().item()
    if spread == 0:
        return 1.0

    def loss(exponent: float) -> float:
        return cross_entropy(math.exp(exponent) * exact, labels).item()

    low, high = (math.log(end / spread) for end in SPREAD)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3}).x)
