"""Contrastive losses between image and text embeddings, and between images.

Run: python -m clipkit.train approach=contrastive
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.losses.chunked import chunked_contrastive_loss
from clipkit.losses.gather import Shares
from clipkit.losses.targets import OWN_PAIR, PairTargets, SoftTargets, Targets, positive_targets, soft_targets
from clipkit.losses.tiles import Chunks, at_least_float32, side_of_tiles

__all__ = ["contrastive_loss", "scaled_cosines", "supervised_contrastive_loss"]


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor,
    targets: Targets = OWN_PAIR,
    chunk_size: Chunks = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean of the image→text and text→image cross-entropies (CLIP, arXiv 2103.00020, figure 3).

    On several processes the rows and targets are those of this process (another number on each is fine, none too), and
    the loss is that of the joined batch: the same number everywhere, and its gradient once parameters' gradients have
    been averaged over the processes, as DistributedDataParallel does.

    Args:
        image: [B, D], rows of unit length.
        text: [M, D], rows of unit length.
        logit_scale: the factor on the cosines, e^t (not t).
        targets: what each row should match; by default row i belongs to text i (then B = M).
        chunk_size: the logits are worked out in squares of this side and made again for the gradient, so that memory
            grows with B + M; the result is the same. None writes all of them out. "auto" does that up to 2²² logits
            (2,048 × 2,048, of all processes), and else takes squares of 512 on a processor, 4,096 elsewhere.
        group: the processes that have a share of the batch each; None is this one alone.

    Returns:
        A scalar in nats, computed in float32 at least; 0 if there is no image or no text.
    """
    image, text, scale = at_least_float32(image, text, logit_scale)
    images, texts = Shares.of(image, group), Shares.of(text, group)
    if images.total == 0 or texts.total == 0:
        return (image.sum() + text.sum()) * scale * 0.0
    side = side_of_tiles(chunk_size, images.total, texts.total, image.device)
    if side is not None:
        return chunked_contrastive_loss(image, text, scale, targets=targets, side=side, images=images, texts=texts)
    to_text, to_image = _written_out(targets, image, text, images, texts)
    logits = scaled_cosines(images.gather(image), texts.gather(text), logit_scale=scale)  # [B, M]
    return (cross_entropy(logits, to_text) + cross_entropy(logits.T, to_image)) / 2


def _written_out(targets: Targets, image: Tensor, text: Tensor, images: Shares, texts: Shares) -> tuple[Tensor, Tensor]:
    """The targets of the joined batch: matrices, image→text [B, M] and text→image [M, B], or of pairs their places."""
    if isinstance(targets, SoftTargets):
        owner = None if targets.owner is None else texts.join(targets.owner + images.own.start)
        return soft_targets(images.join(image), texts.join(text), logit_scale=targets.logit_scale, owner=owner)
    row, column, _ = targets.numbers(images, texts, device=image.device)
    if isinstance(targets, PairTargets) and targets.owner is None:
        return row, column
    to_text, to_image = (positive_targets(*pair, dtype=image.dtype) for pair in ((row, column), (column, row)))
    return to_text, to_image


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
    rows, columns, logit_scale = at_least_float32(rows, columns, logit_scale)
    with torch.autocast(rows.device.type, enabled=False):
        return logit_scale * rows @ columns.T
