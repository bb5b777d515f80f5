"""The losses written out in float64 with exponentials and logarithms of whole matrices, and batches for them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.losses import GroupTargets, PairTargets, SoftTargets, Targets


def unit_rows(rows: int, seed: int, *, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


OWNER = torch.tensor([0, 2, 1, 0, 4, 3, 2, 2, 5, 6, 1])  # 7 pictures, 11 captions
GROUPS = torch.tensor([4, 9, 9, 1, 4, 0, 9])  # of the pictures

# Every kind of targets, with the number of texts that belongs to 7 images.
KINDS: dict[str, tuple[Targets, int]] = {
    "pairs": (PairTargets(), 7),
    "captions": (PairTargets(OWNER), 11),
    "groups": (GroupTargets(GROUPS, GROUPS), 7),
    "groups of captions": (GroupTargets(GROUPS, GROUPS[OWNER]), 11),
    "soft": (SoftTargets(number(5.0)), 7),
    "soft captions": (SoftTargets(number(5.0), OWNER), 11),
}


def wanted(targets: Targets, image: Tensor, text: Tensor) -> Tensor:
    """[B, M] how much each combination is wanted, before either direction is normalised."""
    image, text = image.detach(), text.detach()
    if isinstance(targets, GroupTargets):
        return (targets.image_group[:, None] == targets.text_group).double()
    owner = torch.arange(len(image)) if targets.owner is None else targets.owner
    owns = (torch.arange(len(image))[:, None] == owner).double()
    if isinstance(targets, PairTargets):
        return owns
    mean = owns @ text / owns.sum(1, keepdim=True)
    return (targets.logit_scale * (image @ image[owner].T + mean @ text.T) / 2).exp()


def softmax_loss(image: Tensor, text: Tensor, scale: Tensor, targets: Targets) -> Tensor:
    weights, logits, total = wanted(targets, image, text), scale * image @ text.T, torch.zeros((), dtype=torch.float64)
    for part, right in ((logits, weights), (logits.T, weights.T)):
        odds = (part - part.detach().max(1, keepdim=True).values).exp()
        norm = odds.sum(1, keepdim=True).log() + part.detach().max(1, keepdim=True).values
        total = total - (right / right.sum(1, keepdim=True) * (part - norm)).sum() / len(part) / 2
    return total


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, targets: Targets) -> Tensor:
    sign = 2 * wanted(targets, image, text) - 1
    return (1 + (-sign * (scale * image @ text.T + bias)).exp()).log().sum() / len(image)


def with_gradients(loss: Any, *leaves: Tensor) -> list[Tensor]:
    """The loss of fresh copies of the leaves, and its gradient in each."""
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = loss(*fresh)
    value.backward()
    grads = [leaf.grad for leaf in fresh]
    assert all(grad is not None for grad in grads)
    return [value.detach(), *(grad for grad in grads if grad is not None)]
