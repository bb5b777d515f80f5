"""Contrastive losses between image and text embeddings, and between images.

Run: python -m clipkit.train approach=contrastive
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["contrastive_loss", "scaled_cosines", "supervised_contrastive_loss"]


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor,
    image_targets: Tensor | None = None,
    text_targets: Tensor | None = None,
) -> Tensor:
    """Mean of the image→text and text→image cross-entropies (CLIP, arXiv 2103.00020, figure 3).

    Args:
        image: [B, D], rows of unit length.
        text: [M, D], rows of unit length.
        logit_scale: the factor on the cosines, e^t (not t).
        image_targets: [B, M], rows sum to one; None means row i belongs to text i (then B = M).
        text_targets: [M, B], rows sum to one; None likewise.

    Returns:
        A scalar in nats, computed in float32 at least.
    """
    if image_targets is None and text_targets is None and len(image) != len(text):
        raise ValueError(f"hard targets need as many texts as images, got {len(image)} and {len(text)}")
    logits = scaled_cosines(image, text, logit_scale=logit_scale)  # [B, M]
    return (_cross_entropy(logits, image_targets) + _cross_entropy(logits.T, text_targets)) / 2


def supervised_contrastive_loss(embeds: Tensor, group: Tensor, *, logit_scale: Tensor) -> Tensor:
    """Pull together embeddings of the same group (SupCon "out", arXiv 2004.11362, eq. 2).

    Args:
        embeds: [B, D], rows of unit length.
        group: [B] integers; equal numbers are positives of each other.
        logit_scale: one over the temperature.

    Returns:
        A scalar in nats: the mean over the rows that have a positive, 0 if none has.
    """
    if len(embeds) < 2:
        return embeds.sum() * 0.0
    logits = scaled_cosines(embeds, embeds, logit_scale=logit_scale)  # [B, B]
    itself = torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)
    positive = (group[:, None] == group[None, :]) & ~itself
    log_probs = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    count = positive.sum(1)
    per_row = -(log_probs * positive).sum(1) / count.clamp(min=1)
    return per_row.sum() / (count > 0).sum().clamp(min=1)


def scaled_cosines(rows: Tensor, columns: Tensor, *, logit_scale: Tensor) -> Tensor:
    """[B, D] and [M, D] of unit length -> logits [B, M], in float32 at least, also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return logit_scale * _at_least_float32(rows) @ _at_least_float32(columns).T


def _cross_entropy(logits: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None:
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    return cross_entropy(logits, targets.to(logits.dtype))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()  # float32: logits reach 100, bfloat16 keeps 8 bits of them
