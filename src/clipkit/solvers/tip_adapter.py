"""Tip-Adapter (arXiv 2207.09519): zero-shot logits and a memory of labelled pictures, blended without training.

Used by: python -m clipkit.train approach=tip_adapter
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["ALPHAS", "BETAS", "blend_score", "memory_logits", "search_blend"]

# By equal factors of about 1.2. The authors search α and β up to 3 … 50, another scale for each data set; where texts
# tell little, the best α is beyond that.
BETAS = tuple(0.1 * 500 ** (step / 34) for step in range(35))  # 0.1 … 50
ALPHAS = (0.0, *(0.1 * 10_000 ** (step / 50) for step in range(51)))  # 0, 0.1 … 1000
AT_ONCE = 2**24  # closenesses of pictures to keys in memory


def memory_logits(embeds: Tensor, keys: Tensor, values: Tensor, *, num_classes: int, beta: Tensor | float) -> Tensor:
    """exp(−β (1 − f Kᵀ)) V: how close a picture is to the keys of each class.

    Args:
        embeds: [M, D], rows of unit length.
        keys: [N, D].
        values: [N] the class of each key (the column of the one in V).
        num_classes: C; not all need a key.
        beta: how fast closeness falls with the distance.

    Returns:
        [M, C].
    """
    parts = []
    for chunk in torch.split(embeds, max(1, AT_ONCE // max(1, len(keys)))):
        close = torch.exp(-beta * (1 - keys @ chunk.T))  # [N, m]
        by_class = torch.zeros(num_classes, len(chunk), dtype=close.dtype, device=close.device)
        parts.append(by_class.index_add(0, values, close).T)  # a product with V, without making V
    return torch.cat(parts)


def search_blend(
    embeds: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    text_logits: Tensor,
    unit: float = 1.0,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> tuple[float, float]:
    """α and β with the most right answers on validation pictures, of equals those with the least loss.

    With 0 among the alphas, the zero-shot answer is a candidate: what is chosen has no fewer right answers than it.

    Args:
        embeds, labels: [M, D] and [M] of the validation pictures, at least one.
        keys, values: [N, D] and [N], as for `memory_logits`.
        text_logits: [M, C] zero-shot logits.
        unit: what α is counted in: 1 where the zero-shot logits are 100 times the cosines, as in the paper.
        alphas, betas: what is tried, smaller ones first; of equally good pairs the first is taken.

    Returns:
        α in that unit, and β.
    """
    chosen, best = (0.0, 0.0), (-1, 0.0)
    for beta in betas:
        memory = memory_logits(embeds, keys, values, num_classes=text_logits.shape[1], beta=beta)
        for alpha in alphas:
            score = blend_score(text_logits + unit * alpha * memory, labels)
            if score > best:
                chosen, best = (float(alpha), float(beta)), score
    return chosen


def blend_score(logits: Tensor, labels: Tensor) -> tuple[int, float]:
    """How good [M, C] logits are: right answers, then the loss; greater is better."""
    return int((logits.argmax(1) == labels).sum()), -cross_entropy(logits.double(), labels).item()
