"""The pictures nearest to a query: exact, and in an order that does not depend on who computes it.

Scores are cosines, rounded to five decimals; pictures of one score stand by name. Float32 products differ in their last
bits between libraries, so whoever searches only proposes: what could be among the best is scored again in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import UserError
from clipkit.features.gallery_index import Embedded

__all__ = ["BACKENDS", "Hit", "check_backend", "nearest"]

BACKENDS = ("exact", "faiss")
DECIMALS = 5
MARGIN = 3e-5  # more than float32 and the rounding can shift a cosine
AT_ONCE = 64  # queries compared at a time
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A picture that was found, and its cosine with the query."""

    name: str
    score: float


def nearest(
    pictures: Embedded, queries: Array, *, top: int, backend: Literal["exact", "faiss"] = "exact"
) -> list[list[Hit]]:
    """For each query its best pictures, best first.

    Args:
        pictures: N embeddings.
        queries: [Q, D], rows of unit length.
        top: how many, at most N.
        backend: "exact" is a matrix product, "faiss" its `IndexFlatIP`; both give the same.

    Raises:
        UserError: faiss is asked for and not installed.
    """
    propose = {"exact": _by_product, "faiss": _by_faiss}[backend]
    count = min(top, len(pictures.names))
    if count < 1:
        return [[] for _ in queries]
    rows = propose(pictures, np.ascontiguousarray(queries, np.float32), count)
    return [_settle(pictures, query, found, count) for query, found in zip(queries, rows, strict=True)]


def check_backend(backend: str) -> None:
    """`UserError` if a backend is not installed: to be said before the long work."""
    if backend == "faiss":
        _faiss()


def _by_product(pictures: Embedded, queries: Array, count: int) -> Iterator[NDArray[np.int64]]:
    """For each query the rows that may be among its `count` best."""
    for start in range(0, len(queries), AT_ONCE):
        part = queries[start : start + AT_ONCE]
        for scores in np.concatenate([part @ block.T for block in pictures.blocks], axis=1):  # [N]
            last = np.partition(scores, -count)[-count]
            yield np.flatnonzero(scores >= last - MARGIN)


def _by_faiss(pictures: Embedded, queries: Array, count: int) -> Iterator[NDArray[np.int64]]:
    faiss = _faiss()
    index = faiss.IndexFlatIP(queries.shape[1])
    for block in pictures.blocks:
        index.add(np.ascontiguousarray(block))
    best, _ = index.search(queries, count)
    for query, scores in zip(queries, best, strict=True):
        _, _, rows = index.range_search(query[None], float(scores[-1]) - MARGIN)
        yield np.sort(rows.astype(np.int64))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            'backend=faiss needs faiss: pip install "clipkit-train[faiss]"; backend=exact does not'
        ) from None
    return faiss


def _settle(pictures: Embedded, query: Array, rows: NDArray[np.int64], count: int) -> list[Hit]:
    scores = np.concatenate(
        [
            pictures.rows(rows[start : start + 4096]).astype(np.float64) @ query.astype(np.float64)
            for start in range(0, len(rows), 4096)
        ]
    ).round(DECIMALS)
    named = sorted((-score, pictures.names[row]) for score, row in zip(scores.tolist(), rows.tolist(), strict=True))
    return [Hit(name, -score) for score, name in named[:count]]
