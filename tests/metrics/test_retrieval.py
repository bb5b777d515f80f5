"""Retrieval scores against an explicit loop and torchmetrics; ties, NaN and chunks."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalHitRate

from clipkit.metrics import retrieval_metrics, retrieval_ranks


def unit_rows(rows: int, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def groups(rows: int, count: int, seed: int) -> Tensor:
    """Every group at least once."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(count, (rows - count,), generator=generator)
    return torch.cat([torch.arange(count), more])[torch.randperm(rows, generator=generator)]


def loop_ranks(query: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor) -> list[int]:
    """Sort the gallery for each query, wrong before right among equals, and look for the first right one."""
    ranks = []
    for row, own in zip(query, query_group.tolist(), strict=True):
        scores = [
            (-float(row @ other), group == own) for other, group in zip(gallery, gallery_group.tolist(), strict=True)
        ]
        ranks.append([right for _, right in sorted(scores)].index(True))
    return ranks


def test_ranks_and_recalls_equal_an_explicit_loop() -> None:
    image, text = unit_rows(40, 6, 0), unit_rows(90, 6, 1)
    image_group, text_group = groups(40, 25, 2), groups(90, 25, 3)
    metrics = retrieval_metrics(image, text, image_group=image_group, text_group=text_group, ks=(1, 5, 10))
    ways = {
        "i2t": loop_ranks(image, text, image_group, text_group),
        "t2i": loop_ranks(text, image, text_group, image_group),
    }
    for way, ranks in ways.items():
        for k in (1, 5, 10):
            assert metrics[f"{way}_recall@{k}"] == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))
        half = len(ranks) // 2
        middle = sorted(ranks)[half - 1 : half + 1]  # both counts are even
        assert metrics[f"{way}_median_rank"] == pytest.approx(sum(middle) / 2 + 1)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_the_hit_rate_of_torchmetrics(k: int) -> None:
    image, text = unit_rows(30, 5, 4), unit_rows(60, 5, 5)
    image_group, text_group = groups(30, 20, 6), groups(60, 20, 7)
    metrics = retrieval_metrics(image, text, image_group=image_group, text_group=text_group, ks=(k,))
    scores, right = image @ text.T, image_group[:, None] == text_group[None, :]
    for way, values, target in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        indexes = torch.arange(len(values))[:, None].expand_as(values)
        hits = RetrievalHitRate(top_k=k)(values.flatten(), target.flatten(), indexes=indexes.flatten())
        assert metrics[f"{way}_recall@{k}"] == pytest.approx(hits.item(), abs=1e-6)


def test_an_image_with_several_captions_is_a_hit_if_any_of_them_comes_first() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])  # the first image's captions: one far off, one exact
    metrics = retrieval_metrics(
        image, text, image_group=torch.tensor([0, 1]), text_group=torch.tensor([0, 0, 1]), ks=(1,)
    )
    assert metrics["i2t_recall@1"] == 1
    assert metrics["t2i_recall@1"] == 1


@pytest.mark.parametrize("count", [5, 33, 101, 1030])
def test_constant_embeddings_never_beat_chance(count: int) -> None:
    constant = unit_rows(1, 48, 8).expand(count, 48).contiguous()
    metrics = retrieval_metrics(constant, constant, image_group=torch.arange(count), text_group=torch.arange(count))
    for way in ("i2t", "t2i"):
        assert metrics[f"{way}_recall@1"] <= 1 / count


def test_a_wrong_text_that_scores_the_same_stands_before_the_right_one() -> None:
    same = torch.tensor([[1.0, 0.0]])
    ranks = retrieval_ranks(
        same, same.expand(4, 2), query_group=torch.tensor([0]), gallery_group=torch.tensor([0, 1, 2, 3])
    )
    assert ranks.tolist() == [3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_not_finite_raise(bad: float, side: str) -> None:
    embeds = {"image": unit_rows(4, 3, 9), "text": unit_rows(4, 3, 10)}
    embeds[side][2, 1] = bad
    with pytest.raises(ValueError, match="NaN"):
        retrieval_metrics(**embeds, image_group=torch.arange(4), text_group=torch.arange(4))


def test_a_query_without_a_right_answer_raises() -> None:
    with pytest.raises(ValueError, match="no right answer"):
        retrieval_ranks(
            unit_rows(2, 3, 11),
            unit_rows(2, 3, 12),
            query_group=torch.tensor([0, 5]),
            gallery_group=torch.tensor([0, 1]),
        )


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_chunk_size_does_not_matter(chunk: int) -> None:
    query, gallery = unit_rows(50, 8, 13), unit_rows(70, 8, 14)
    group = {"query_group": groups(50, 30, 15), "gallery_group": groups(70, 30, 16)}
    assert retrieval_ranks(query, gallery, **group, chunk=chunk).tolist() == loop_ranks(query, gallery, *group.values())
