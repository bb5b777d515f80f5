"""The contrastive loss tile by tile: exact, with memory linear in the batch, on one process or on several.

With S = s·X Yᵀ the loss is half of: the mean over rows of log Σ exp S, plus the same over columns, minus Σ W ∘ S, where
W = P/B + Q/M joins the targets of both directions. Its gradient in S is half of

    G = exp(S − row) / B + exp(S − column) / M − W,      dX = s·G Y,   dY = s·Gᵀ X,   ds = Σ X ∘ (G Y).

The forward pass keeps X, Y and the logarithms of the sums; the backward pass makes S again. That is one matrix product
more than keeping it, and still faster once S does not fit a cache. Targets by number never become a matrix: W Y is a
sum by group. On several processes each has its own rows X against everybody's columns Y.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.losses.gather import Shares
from clipkit.losses.targets import GroupTargets, PairTargets, SoftTargets, Targets, mean_text
from clipkit.losses.tiles import LogSumExp, sum_by_number, tiles

__all__ = ["chunked_contrastive_loss"]


def chunked_contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, *, targets: Targets, side: int, images: Shares, texts: Shares
) -> Tensor:
    """`contrastive_loss` of this process's image [b, D] and text [m, D], in tiles of side × side logits.

    Args:
        scale: the factor on the cosines; of the embeddings' number type, as they are of each other's.
        images: how the rows of `image` are shared out; texts: those of `text`.
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        if isinstance(targets, SoftTargets):
            answers: _Answers = _Resemblance.of(image, text, targets, texts)
        else:
            answers = _Numbered.of(targets, image, images, texts)
    loss: Tensor = _ContrastiveLoss.apply(image, text, scale, answers, side, images, texts)
    return loss


class _Numbered(NamedTuple):
    """Positives are rows and columns of the same number."""

    row: Tensor  # [b] numbers of this process's rows
    column: Tensor  # [M] numbers of all columns
    weight: Tensor  # [b] W at each positive of the row
    numbers: int  # how many there are

    @classmethod
    def of(cls, targets: PairTargets | GroupTargets, image: Tensor, images: Shares, texts: Shares) -> "_Numbered":
        row, column, count = targets.numbers(images, texts, device=image.device)
        of_rows, of_columns = (torch.bincount(number, minlength=count).to(image.dtype) for number in (row, column))
        own = row[images.own]
        weight = 1 / (len(row) * of_columns[own]) + 1 / (len(column) * of_rows[own])
        return cls(own, column, weight, count)

    def for_rows(self, columns: Tensor) -> Tensor:
        """W Y, [b, D]."""
        return sum_by_number(columns, self.column, self.numbers)[self.row].mul_(self.weight[:, None])

    def for_columns(self, rows: Tensor) -> Tensor:
        """Wᵀ X, [M, D], X being this process's rows."""
        return sum_by_number(self.weight[:, None] * rows, self.row, self.numbers)[self.column]


class _Resemblance(NamedTuple):
    """Targets are the softmax of how alike the pairs are within each tower."""

    image: Tensor  # [b, D] sharpened images of this process
    text: Tensor  # [b, D] the sharpened mean of each one's texts
    owned: Tensor  # [M, D] the image of every text

    @classmethod
    def of(cls, image: Tensor, text: Tensor, targets: SoftTargets, texts: Shares) -> "_Resemblance":
        owned, mean = image, text
        if targets.owner is not None:
            owned, mean = image[targets.owner], mean_text(text, targets.owner, len(image))
        sharpness = targets.logit_scale.to(image) / 2
        return cls(sharpness * image, sharpness * mean, texts.join(owned))

    def scores(self, columns: Tensor, r: slice, c: slice) -> Tensor:
        """What a tile's targets are the softmax of."""
        return (self.image[r] @ self.owned[c].T).addmm_(self.text[r], columns[c].T)


_Answers = _Numbered | _Resemblance


def _sum_at_once(image: Tensor, columns: Tensor, scale: Tensor, side: int, sums: list[LogSumExp]) -> bool:
    """Fill the sums of rows and columns from one exponential a logit, if its range allows; else leave them alone.

    The same number is subtracted everywhere, from which no logit is farther up than 70 (e^70 times any batch fits
    float32). A sum above e^-60 then has all its terms to e^-27 of the largest: as good as with a maximum of its own.
    """
    longest = [float(rows.norm(dim=1).max()) if len(rows) else 0.0 for rows in (image, columns)]
    shift = max(0.0, abs(float(scale)) * longest[0] * longest[1] - 70)
    if not math.isfinite(shift):
        return False
    totals = [torch.zeros_like(part.total) for part in sums]
    for r, c in tiles(len(image), len(columns), side):
        if c.start == 0:
            rows = scale * image[r]
        logits = rows @ columns[c].T
        terms = (logits if shift == 0 else logits.sub_(shift)).exp_()
        totals[0][r] += terms.sum(1)
        totals[1][c] += terms.sum(0)
    if len(image) == 0 or not min(float(total.min()) for total in totals) > math.exp(-60):
        return False
    for part, total in zip(sums, totals, strict=True):
        part.top.fill_(shift)
        part.total.copy_(total)
    return True


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        answers: _Answers,
        side: int,
        images: Shares,
        texts: Shares,
    ) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            columns = texts.join(text)  # [M, D]
            sums = [LogSumExp(image, len(part)) for part in (image, columns)]
            alike_sums = [LogSumExp(image, len(part)) for part in (image, columns)]
            if isinstance(answers, _Resemblance) or not _sum_at_once(image, columns, scale, side, sums):
                for r, c in tiles(len(image), len(columns), side):
                    if c.start == 0:
                        rows = scale * image[r]
                    logits = rows @ columns[c].T
                    sums[0].add(r, logits, dim=1)
                    sums[1].add(c, logits, dim=0)
                    if isinstance(answers, _Resemblance):
                        alike = answers.scores(columns, r, c)
                        alike_sums[0].add(r, alike, dim=1, values=logits)
                        alike_sums[1].add(c, alike, dim=0, values=logits)
            sums[1].join(images.group)
            row, column = (part.value() for part in sums)
            norms = [row, column]
            if isinstance(answers, _Resemblance):
                alike_sums[1].join(images.group)
                norms += [part.value() for part in alike_sums]
                own = (row - alike_sums[0].mean()).sum() / images.total  # of this process's rows
                shared = (column - alike_sums[1].mean()).mean()
            else:
                own = row.sum() / images.total - scale * (image * answers.for_rows(columns)).sum()
                shared = column.mean()
            if images.group is not None:
                dist.all_reduce(own, group=images.group)
        numbers = [part for part in answers if isinstance(part, Tensor)]
        ctx.save_for_backward(image, columns, scale, *numbers, *norms)
        ctx.count = None if isinstance(answers, _Resemblance) else answers.numbers
        ctx.side, ctx.images, ctx.texts = side, images, texts
        return (own + shared) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, columns, scale, first, second, third, row, column, *alike_norms = ctx.saved_tensors
        answers: _Answers = (
            _Resemblance(first, second, third) if ctx.count is None else _Numbered(first, second, third, ctx.count)
        )
        for_image, for_text, for_scale = ctx.needs_input_grad[:3]
        by_row = torch.zeros_like(image) if for_image or (for_scale and not for_text) else None  # G Y
        by_column = torch.zeros_like(columns) if for_text else None  # Gᵀ X
        with torch.autocast(image.device.type, enabled=False):
            shift = math.log(ctx.images.total), math.log(ctx.texts.total)
            row, column, *alike_norms = (norm + shift[i % 2] for i, norm in enumerate((row, column, *alike_norms)))
            for r, c in tiles(len(image), len(columns), ctx.side):
                if c.start == 0:
                    rows = scale * image[r]
                logits = rows @ columns[c].T
                slope = (logits - row[r, None]).exp_()  # G
                slope += logits.sub_(column[c]).exp_()
                if isinstance(answers, _Resemblance):
                    alike = answers.scores(columns, r, c)
                    slope -= (alike - alike_norms[0][r, None]).exp_()
                    slope -= alike.sub_(alike_norms[1][c]).exp_()
                if by_row is not None:
                    by_row[r].addmm_(slope, columns[c])
                if by_column is not None:
                    by_column[c].addmm_(slope.T, image[r])
            if isinstance(answers, _Numbered):
                if by_row is not None:
                    by_row -= answers.for_rows(columns)
                if by_column is not None:
                    by_column -= answers.for_columns(image)
            factor = grad * len(ctx.images.counts) / 2  # gradients of W processes are averaged
            scale_grad = None
            if for_scale:
                scale_grad = factor * ((image * by_row).sum() if by_row is not None else (columns * by_column).sum())
            image_grad = by_row.mul_(factor * scale) if by_row is not None and for_image else None
            text_grad = ctx.texts.sum_of_own(by_column).mul_(factor * scale) if by_column is not None else None
        return image_grad, text_grad, scale_grad, None, None, None, None
