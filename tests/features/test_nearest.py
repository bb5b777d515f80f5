"""Nearest pictures: the ranking of a float64 product, ties by name, whoever computes it."""

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.features import nearest as module
from clipkit.features.gallery_index import Embedded
from clipkit.features.nearest import BACKENDS, nearest


def pictures(count: int, *, width: int = 24, copies: int = 1, seed: int = 0) -> Embedded:
    """Random embeddings in blocks of uneven size; each stands there `copies` times under names that are not sorted."""
    draws = np.random.default_rng(seed)
    rows = draws.normal(size=(count, width)).repeat(copies, axis=0)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    names = [f"{number:05}.png" for number in draws.permutation(len(rows))]
    return Embedded(names, np.array_split(rows, 7), [], 0)


def unit(count: int, width: int = 24, seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reference(known: Embedded, query: np.ndarray, top: int) -> list[tuple[str, float]]:
    scores = np.concatenate(known.blocks).astype(np.float64) @ query.astype(np.float64)
    named = sorted(zip((-scores).round(5).tolist(), known.names, strict=True))
    return [(name, -score) for score, name in named[:top]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "copies", "top"), [(900, 1, 20), (30, 30, 50), (5, 1, 20), (1, 1, 1), (40, 3, 120)])
def test_the_ranking_is_that_of_a_float64_product_with_ties_by_name(
    backend: str, count: int, copies: int, top: int
) -> None:
    known, queries = pictures(count, copies=copies), unit(70)
    found = nearest(known, queries, top=top, backend=backend)
    assert len(found) == 70
    for hits, query in zip(found, queries, strict=True):
        assert [(hit.name, hit.score) for hit in hits] == reference(known, query, top)


def test_both_backends_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known, queries = pictures(2000, copies=2, width=64), unit(9, 64)
    assert nearest(known, queries, top=33, backend="faiss") == nearest(known, queries, top=33)


def test_without_faiss_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r'pip install "clipkit-train\[faiss\]"'):
        nearest(pictures(3), unit(1), top=1, backend="faiss")
    assert nearest(pictures(3), unit(1), top=1) != []


def test_no_more_is_held_at_once_than_a_few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    known, queries = pictures(50), unit(10)
    whole = nearest(known, queries, top=5)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    assert nearest(known, queries, top=5) == whole
