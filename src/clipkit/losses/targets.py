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


def soft_targets(
    image: Tensor, text: Tensor, *, logit_scale: Tensor, owner: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Targets from the resemblance within each tower: softmax((I Iᵀ + T Tᵀ) / 2 · logit_scale), row by row.

    Where a picture has several captions, picture b and caption m resemble each other by (I_b · I_owner(m) + mean over
    b's captions of T · T_m) / 2. Each direction is normalised along its own rows (transposing after the softmax would
    break that). No gradient flows through them.

    Args:
        image: [B, D], rows of unit length.
        text: [M, D], rows of unit length.
        logit_scale: one over the temperature of the targets.
        owner: [M] the row of each caption's picture, every picture having at least one; None means text i belongs to
            image i (then M = B).

    Returns:
        image→text [B, M] and text→image [M, B], float32 (float64 for float64 input), rows sum to one.
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        image, text = (x if x.dtype == torch.float64 else x.float() for x in (image, text))
        images, mean = image @ image.T, text
        if owner is not None:
            count = torch.bincount(owner, minlength=len(image)).to(text.dtype)
            mean = torch.zeros_like(image).index_add_(0, owner, text) / count[:, None]  # [B, D], of b's captions
            images = images[:, owner]
        alike = logit_scale * (images + mean @ text.T) / 2  # [B, M]
        return torch.softmax(alike, dim=1), torch.softmax(alike.T, dim=1)
