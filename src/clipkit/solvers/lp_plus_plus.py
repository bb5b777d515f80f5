"""LP++ (arXiv 2404.02285): a linear classifier whose weights are pictures' directions plus scaled text embeddings.

Used by: python -m clipkit.train approach=lp_plus_plus
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["Blend", "fit_lp_plus_plus", "start", "step_sizes"]

ALPHA_EVERY = 10  # steps of the weights to one of the blend, as the authors' program does it
ALPHA_START = 250.0  # its factor on the mean cosine with which the blend begins


@dataclass(frozen=True)
class Blend:
    """Logits f · (w_k + α_k t_k).

    Args:
        visual: [C, D], w.
        alpha: [C].
        text: [C, D], t.
    """

    visual: Tensor
    alpha: Tensor
    text: Tensor

    @property
    def weights(self) -> Tensor:
        """[C, D], w + α t."""
        return self.visual + self.alpha[:, None] * self.text

    def logits(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, C]."""
        return features @ self.weights.T


def start(features: Tensor, labels: Tensor, text: Tensor, *, unit: float = 1.0) -> Blend:
    """Where the descent begins: w_k is the sum of its class's pictures; all α are 250 times the mean cosine of a
    picture and its own class's text (mean of each class first, then of the classes that have pictures).

    Args:
        features, labels, text: as for `fit_lp_plus_plus`.
        unit: what α is counted in: 1 for a model that was trained with 100 times the cosines, as the paper's are.
    """
    counts = torch.bincount(labels, minlength=len(text)).to(features.dtype)
    sums = torch.zeros_like(text).index_add_(0, labels, features)
    cosines = (sums * text).sum(1)[counts > 0] / counts[counts > 0]
    return Blend(sums, (unit * ALPHA_START * cosines.mean()).expand(len(text)).clone(), text)


def step_sizes(features: Tensor, text: Tensor) -> tuple[float, float]:
    """Step sizes of w and α, from the data alone: 4N / λmax(FᵀF) and N / (4 max_k Σᵢ (fᵢ · t_k)²).

    The softmax's curvature is at most ½, so the loss's along w is at most λmax / 2N: 4N/λmax is the longest step that
    can never raise the loss. Along α the longest would be 16 times the one taken.
    """
    widest = torch.linalg.matrix_norm(features, ord=2).square()  # λmax(FᵀF)
    return (4 * len(features) / widest).item(), (len(features) / (4 * (features @ text.T).square().sum(0).max())).item()


@torch.no_grad()
def fit_lp_plus_plus(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    unit: float = 1.0,
    iterations: int = 300,
    validation: tuple[Tensor, Tensor] | None = None,
) -> tuple[Blend, list[float]]:
    """Block-wise full-batch descent on the mean cross-entropy, in float64.

    Args:
        features: [N, D], rows of unit length.
        labels: [N].
        text: [C, D], rows of unit length.
        unit: what α begins in: see `start`.
        iterations: steps of w; each tenth is followed by one of α.
        validation: features [M, D] and labels [M]: of all iterations, the start among them, the one with the least
            loss here is returned. None, or no rows: the last.

    Returns:
        The blend in float32, and the training loss before each step and after the last [iterations + 1].
    """
    features, text = features.double(), text.double()
    blend = start(features, labels, text, unit=unit)
    step, alpha_step = step_sizes(features, text)
    cosines = features @ text.T  # [N, C]
    onehot = torch.zeros_like(cosines).scatter_(1, labels[:, None], 1.0)
    chosen, least, losses = blend, float("inf"), []
    for iteration in range(iterations + 1):
        logits = blend.logits(features)
        losses.append(cross_entropy(logits, labels).item())
        if validation is not None and len(validation[1]):
            loss = cross_entropy(blend.logits(validation[0].double()), validation[1]).item()
            if loss < least:
                chosen, least = blend, loss
        else:
            chosen = blend
        if iteration == iterations:
            break
        visual = blend.visual - step * _error(logits, onehot).T @ features
        blend = Blend(visual, blend.alpha, text)
        if (iteration + 1) % ALPHA_EVERY == 0:
            slope = (_error(blend.logits(features), onehot) * cosines).sum(0)
            blend = Blend(visual, blend.alpha - alpha_step * slope, text)
    return Blend(chosen.visual.float(), chosen.alpha.float(), text.float()), losses


def _error(logits: Tensor, onehot: Tensor) -> Tensor:
    """[N, C]: the gradient of the mean cross-entropy by the logits."""
    return (logits.softmax(1) - onehot) / len(logits)
