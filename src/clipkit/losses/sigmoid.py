"""The sigmoid loss: each image–text combination is a yes-or-no question of its own (SigLIP, arXiv 2303.15343, eq. 1).

Run: python -m clipkit.train approach=contrastive approach.loss=sigmoid backbone.logit_bias=-10 backbone.temperature=0.1

With logits L = s·X Yᵀ + b and 1 at each positive of Z, the loss is (Σ softplus L − Σ Z ∘ L) / B and its gradient in L
is (σ(L) − Z) / B. No sum stands between a logit and its gradient, so tile by tile both are found in one pass, and the
forward pass keeps the gradients of X and Y alone.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from clipkit.losses.gather import Shares
from clipkit.losses.targets import OWN_PAIR, GroupTargets, PairTargets
from clipkit.losses.tiles import Chunks, at_least_float32, side_of_tiles, sum_by_number, tiles

__all__ = ["sigmoid_loss"]


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: PairTargets | GroupTargets = OWN_PAIR,
    chunk_size: Chunks = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sum over all combinations of −log σ(±logit), + for positives, − for all others, divided by the number of images.

    Args:
        image: [B, D], rows of unit length.
        text: [M, D], rows of unit length.
        logit_scale: the factor on the cosines, e^t (not t).
        logit_bias: added to every logit; a negative one says that most combinations are wrong.
        targets: which combinations are positives.
        chunk_size, group: as in `contrastive_loss`.

    Returns:
        A scalar in nats, computed in float32 at least; 0 if there is no image or no text.
    """
    image, text, scale, bias = at_least_float32(image, text, logit_scale, logit_bias)
    images, texts = Shares.of(image, group), Shares.of(text, group)
    if images.total == 0 or texts.total == 0:
        return (image.sum() + text.sum()) * scale * bias * 0.0
    row, column, count = targets.numbers(images, texts, device=image.device)
    side = side_of_tiles(chunk_size, images.total, texts.total, image.device)
    if side is not None:
        options = (row[images.own], column, count, side, torch.is_grad_enabled(), images, texts)
        loss: Tensor = _SigmoidLoss.apply(image, text, scale, bias, *options)
        return loss
    with torch.autocast(image.device.type, enabled=False):
        logits = scale * images.gather(image) @ texts.gather(text).T + bias  # [B, M]
        positive = row[:, None] == column[None, :]
        return _softplus(torch.where(positive, -logits, logits)).sum() / images.total


def _softplus(logits: Tensor) -> Tensor:
    return softplus(logits, threshold=50)  # beyond it the logit itself: e^-50 is nothing, also in float64


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        row: Tensor,
        column: Tensor,
        count: int,
        side: int,
        differentiable: bool,
        images: Shares,
        texts: Shares,
    ) -> Tensor:
        for_image, for_text, for_scale, for_bias = (wanted and differentiable for wanted in ctx.needs_input_grad[:4])
        with torch.autocast(image.device.type, enabled=False):
            columns = texts.join(text)  # [M, D]
            by_row = torch.zeros_like(image) if for_image or (for_scale and not for_text) else None
            by_column = torch.zeros_like(columns) if for_text else None
            loss, chances = image.new_zeros(()), image.new_zeros(())
            for r, c in tiles(len(image), len(columns), side):
                if c.start == 0:
                    rows = scale * image[r]
                logits = torch.addmm(bias, rows, columns[c].T)
                loss += _softplus(logits).sum()
                logits.sigmoid_()
                chances += logits.sum()
                if by_row is not None:
                    by_row[r].addmm_(logits, columns[c])
                if by_column is not None:
                    by_column[c].addmm_(logits.T, image[r])
            right = sum_by_number(columns, column, count)[row]  # Z Y, [b, D]
            positives = torch.bincount(column, minlength=count)[row].sum()
            loss -= scale * (image * right).sum() + bias * positives
            if by_row is not None:
                by_row -= right
            if by_column is not None:
                by_column -= sum_by_number(image, row, count)[column]
            slope = None  # of the loss in the factor on the cosines
            if for_scale and by_row is not None:
                slope = (image * by_row).sum()
            elif for_scale and by_column is not None:
                slope = (columns * by_column).sum()
            if images.group is not None:
                dist.all_reduce(loss, group=images.group)
            factor = len(images.counts) / images.total  # gradients of W processes are averaged
            grads = [
                by_row.mul_(factor * scale) if by_row is not None and for_image else None,
                texts.sum_of_own(by_column).mul_(factor * scale) if by_column is not None else None,
                factor * slope if slope is not None else None,
                factor * (chances - positives) if for_bias else None,
            ]
        ctx.save_for_backward(*grads)
        return loss / images.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if part is None else grad * part for part in ctx.saved_tensors), *[None] * 7
