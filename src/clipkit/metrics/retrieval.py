"""Cross-modal retrieval: how often the right text (image) stands among the first K of the whole gallery."""

import torch
from torch import Tensor

__all__ = ["retrieval_metrics", "retrieval_ranks"]


def retrieval_ranks(
    query: Tensor, gallery: Tensor, *, query_group: Tensor, gallery_group: Tensor, chunk: int = 1024
) -> Tensor:
    """The place of each query's best right answer, counted from 0.

    Right answers are the gallery entries of the query's group. A wrong answer with the same score is counted as
    standing before: ties never favour the model, and constant embeddings give chance or worse.

    Args:
        query: [Q, D] embeddings; gallery: [G, D] embeddings of the other kind.
        query_group: [Q] and gallery_group: [G] integers.
        chunk: queries scored at a time; memory is chunk × G.

    Returns:
        [Q] int64 ranks.

    Raises:
        ValueError: an embedding is not finite (a NaN would win every comparison), or a query has no right answer.
    """
    if not (torch.isfinite(query).all() and torch.isfinite(gallery).all()):
        raise ValueError("embeddings hold NaN or infinity: recall would be meaningless")
    ranks = []
    for start in range(0, len(query), chunk):
        scores = query[start : start + chunk] @ gallery.T  # [chunk, G]
        right = query_group[start : start + chunk, None] == gallery_group[None, :]
        if not right.any(1).all():
            raise ValueError("a query has no right answer in the gallery")
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~right).sum(1))
    return torch.cat(ranks)


def retrieval_metrics(
    image: Tensor, text: Tensor, *, image_group: Tensor, text_group: Tensor, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@K and median rank, both ways, each image and each text counting once.

    Image→text is a hit if any of the image's texts is among the first K.

    Args:
        image: [N, D] and text: [M, D], rows of unit length.
        image_group: [N] and text_group: [M] integers; equal numbers belong together.

    Returns:
        `i2t_recall@K`, `t2i_recall@K` in [0, 1], `i2t_median_rank`, `t2i_median_rank` counted from 1.
    """
    ways = {
        "i2t": retrieval_ranks(image, text, query_group=image_group, gallery_group=text_group),
        "t2i": retrieval_ranks(text, image, query_group=text_group, gallery_group=image_group),
    }
    metrics = {f"{way}_recall@{k}": (ranks < k).double().mean().item() for way, ranks in ways.items() for k in ks}
    for way, ranks in ways.items():
        metrics[f"{way}_median_rank"] = (ranks + 1).double().quantile(0.5).item()
    return metrics
