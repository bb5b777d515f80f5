"""What each image should match: one text, several equally, or as much as the pair resembles itself."""

import torch
from torch import Tensor

__all__ = ["positive_targets", "soft_targets"]


def positive_targets(row_group: Tensor, column_group: Tensor) -> Tensor:
    """Equal weight on every column of the row's group.

    Args:
        row_group: [B] integers.
        column_group: [M] integers; each row's group must occur here.

    Returns:
        [B, M] float32, rows sum to one.
    """
    same = (row_group[:, None] == column_group[None, :]).float()
    return same / same.sum(1, keepdim=True)


def soft_targets(image: Tensor, text: Tensor, *, logit_scale: Tensor) -> Tensor:
    """Targets from the resemblance within each tower: softmax((I Iᵀ + T Tᵀ) / 2 · logit_scale), row by row.

    The matrix is symmetric, so the same rows serve image→text and text→image, each normalised along its own row
    (transposing after the softmax would break that). No gradient flows through them.

    Args:
        image, text: [B, D], rows of unit length, in pairs.
        logit_scale: one over the temperature of the targets.

    Returns:
        [B, B] float32 (float64 for float64 input), rows sum to one.
    """
    with torch.no_grad():
        image, text = (x if x.dtype == torch.float64 else x.float() for x in (image, text))
        return torch.softmax(logit_scale * (image @ image.T + text @ text.T) / 2, dim=1)
