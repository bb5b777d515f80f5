"""Cross-modal retrieval: how often the right text (image) stands among the first K of the whole gallery."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["rank_metrics", "retrieval_metrics", "retrieval_ranks"]

SCORES = 2**24  # scores held at a time, where no chunk is given: 64 MB


def retrieval_ranks(
    query: Tensor,
    gallery: Tensor,
    *,
    query_group: Tensor,
    gallery_group: Tensor,
    chunk: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The place of each query's best right answer, counted from 0.

    Right answers are the gallery entries of the query's group. A wrong answer with the same score is counted as
    standing before: ties never favour the model, and constant embeddings give chance or worse.

    Args:
        query: [Q, D] embeddings; gallery: [G, D] embeddings of the other kind.
        query_group: [Q] and gallery_group: [G] integers.
        chunk: queries scored at a time; None: as many as keep the scores in 64 MB.
        on_progress: called with (queries done, queries).

    Returns:
        [Q] int64 ranks.

    Raises:
        ValueError: an embedding is not finite (a NaN would win every comparison), or a query has no right answer.
    """
    if not all(torch.isfinite(embeds.sum()) or torch.isfinite(embeds).all() for embeds in (query, gallery)):
        raise ValueError("embeddings hold NaN or infinity: recall would be meaningless")
    by_group, order = gallery_group.sort(stable=True)
    first = torch.searchsorted(by_group, query_group)  # [Q] a query's right answers are neighbours in this order
    owned = torch.searchsorted(by_group, query_group, right=True) - first
    if not owned.all():
        raise ValueError("a query has no right answer in the gallery")
    size = max(1, SCORES // len(gallery)) if chunk is None else chunk
    ranks = torch.empty(len(query), dtype=torch.long, device=query.device)
    held = gallery.new_empty(min(size, len(query)), len(gallery))  # new memory for each chunk would cost a third more
    for start in range(0, len(query), size):
        rows = slice(start, start + size)
        scores = torch.mm(query[rows], gallery.T, out=held[: len(query[rows])])  # [chunk, G]
        ranks[rows] = _wrong_ahead(scores, order, first[rows], owned[rows])
        if on_progress is not None:
            on_progress(min(start + size, len(query)), len(query))
    return ranks


def _wrong_ahead(scores: Tensor, order: Tensor, first: Tensor, owned: Tensor) -> Tensor:
    """[c] wrong answers that score at least as high as the best right one.

    Args:
        scores: [c, G]; written over.
        order: [G] columns sorted by group.
        first, owned: [c] the right ones of row i are order[first[i]] … order[first[i] + owned[i] − 1].
    """
    row = torch.arange(len(scores), device=scores.device).repeat_interleave(owned)
    nth = torch.arange(len(row), device=scores.device) - (owned.cumsum(0) - owned)[row]
    right = scores[row, order[first[row] + nth]]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, row, right, "amax")
    # Ones and zeros in the place of the scores: several times as fast as counting true values. float32 adds them
    # without rounding up to 2²⁴.
    wide = torch.float64 if scores.shape[1] >= 2**24 else torch.promote_types(scores.dtype, torch.float32)
    ahead = torch.ge(scores, best[:, None], out=scores).sum(1, dtype=wide).long()
    return ahead.index_add_(0, row, (right >= best[row]).long(), alpha=-1)


def rank_metrics(ranks: Mapping[str, Tensor], *, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall@K and median rank of each way.

    Args:
        ranks: by way ("i2t", "t2i"), [Q] counted from 0.

    Returns:
        `WAY_recall@K` in [0, 1]; `WAY_median_rank`, counted from 1.
    """
    metrics = {f"{way}_recall@{k}": (found < k).double().mean().item() for way, found in ranks.items() for k in ks}
    return metrics | {f"{way}_median_rank": (found + 1).double().quantile(0.5).item() for way, found in ranks.items()}


def retrieval_metrics(
    image: Tensor, text: Tensor, *, image_group: Tensor, text_group: Tensor, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@K and median rank, both ways, each image and each text counting once.

    Image→text is a hit if any of the image's texts is among the first K.

    Args:
        image: [N, D] and text: [M, D], rows of unit length.
        image_group: [N] and text_group: [M] integers; equal numbers belong together.

    Returns:
        `i2t_recall@K`, `t2i_recall@K`, `i2t_median_rank` and `t2i_median_rank`: see `rank_metrics`.
    """
    ranks = {
        "i2t": retrieval_ranks(image, text, query_group=image_group, gallery_group=text_group),
        "t2i": retrieval_ranks(text, image, query_group=text_group, gallery_group=image_group),
    }
    return rank_metrics(ranks, ks=ks)
