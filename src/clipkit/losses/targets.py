"""What each image should match: its own texts, several equally, or as much as the pair resembles itself.

Targets are described rather than written out, so that losses can make them tile by tile. Each direction, image→text
and text→image, is normalised along its own rows: every row's targets sum to one. `positive_targets` and `soft_targets`
write them out as matrices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.losses.gather import Shares
from clipkit.losses.tiles import at_least_float32, sum_by_number

__all__ = ["OWN_PAIR", "GroupTargets", "PairTargets", "SoftTargets", "Targets", "positive_targets", "soft_targets"]


@dataclass(frozen=True)
class PairTargets:
    """Each image's own texts, equally; each text's own image.

    Args:
        owner: [M] the row of each text's image, on the same process; None means text i belongs to image i.
    """

    owner: Tensor | None = None

    def numbers(self, images: Shares, texts: Shares, *, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Joined [B] and [M] numbers, equal ones are positives, and their count: they are 0 … count − 1."""
        own = torch.arange(images.total, device=device)
        if self.owner is not None:
            return own, texts.join(self.owner + images.own.start), images.total
        if images.counts != texts.counts:
            found = [", ".join(map(str, shares.counts)) for shares in (images, texts)]
            raise ValueError(f"hard targets need as many texts as images, got {found[0]} and {found[1]}")
        return own, own, images.total


@dataclass(frozen=True)
class GroupTargets:
    """All texts of the image's group, equally; all images of the text's group.

    Args:
        image_group: [B] integers.
        text_group: [M] integers. Every group has to have images and texts (on whichever process).
    """

    image_group: Tensor
    text_group: Tensor

    def numbers(self, images: Shares, texts: Shares, *, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Joined [B] and [M] numbers, equal ones are positives, and their count: they are 0 … count − 1."""
        groups = torch.cat([images.join(self.image_group), texts.join(self.text_group)])
        names, number = torch.unique(groups, return_inverse=True)
        return number[: images.total], number[images.total :], len(names)


@dataclass(frozen=True)
class SoftTargets:
    """The resemblance within each tower, see `soft_targets`. No gradient flows through them.

    Args:
        logit_scale: one over the temperature of the targets.
        owner: [M] the row of each text's image, on the same process, every image having at least one; None means
            text i belongs to image i.
    """

    logit_scale: Tensor
    owner: Tensor | None = None


OWN_PAIR = PairTargets()
Targets = PairTargets | GroupTargets | SoftTargets


def positive_targets(row_group: Tensor, column_group: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Equal weight on every column of the row's group.

    Args:
        row_group: [B] integers.
        column_group: [M] integers; each row's group must occur here.

    Returns:
        [B, M] of `dtype`, rows sum to one.
    """
    same = (row_group[:, None] == column_group[None, :]).to(dtype)
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
        image, text = at_least_float32(image, text)
        images, mean = image @ image.T, text
        if owner is not None:
            mean = mean_text(text, owner, len(image))
            images = images[:, owner]
        alike = logit_scale * (images + mean @ text.T) / 2  # [B, M]
        return torch.softmax(alike, dim=1), torch.softmax(alike.T, dim=1)


def mean_text(text: Tensor, owner: Tensor, images: int) -> Tensor:
    """[M, D] -> [images, D], the mean of each image's texts."""
    count = torch.bincount(owner, minlength=images).to(text.dtype)
    return sum_by_number(text, owner, images) / count[:, None]
