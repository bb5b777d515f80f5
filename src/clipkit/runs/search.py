"""Searching a gallery: the queries, what the model says of them, and the pictures that come nearest."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from clipkit.data.decoding import Broken, available_cores
from clipkit.data.gallery import Gallery
from clipkit.errors import UserError
from clipkit.features.gallery_index import GalleryIndex
from clipkit.features.nearest import Hit, check_backend, nearest
from clipkit.models.model import Model
from clipkit.runs.asking import as_list
from clipkit.runs.csv_file import csv_file
from clipkit.runs.predict import refuse_unaligned
from clipkit.runs.record import Run
from clipkit.runs.unreadable import refuse_without_pictures

__all__ = ["Found", "Query", "queries_of", "search", "write_results"]


@dataclass(frozen=True)
class Query:
    """What is sought: a sentence, or the name of a picture file."""

    text: str
    is_picture: bool

    @property
    def headline(self) -> str:
        return f"like {self.text}" if self.is_picture else self.text


@dataclass(frozen=True)
class Found:
    """The answer to all queries.

    Args:
        queries: Q queries.
        hits: Q lists of pictures, best first.
        pictures: how many were searched.
        encoded: how many of them the model had to look at; the index knew the others.
        broken: pictures that cannot be read, and why.
    """

    queries: list[Query]
    hits: list[list[Hit]]
    pictures: int
    encoded: int
    broken: list[Broken]


def queries_of(config: DictConfig) -> list[Query]:
    """The sentences, then the pictures, that a command line asks for."""
    texts = [Query(str(text).strip(), False) for text in as_list(config.query)]
    return texts + [Query(os.path.expanduser(str(file)), True) for file in as_list(config.query_image)]


def search(
    config: DictConfig,
    model: Model,
    gallery: Gallery,
    run: Run,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Answer the queries of a configuration.

    Raises:
        UserError: a query that the model cannot answer, no picture that can be read, an index that cannot be written.
    """
    check_backend(config.backend)
    queries = queries_of(config)
    wanted = _embed(model, queries)  # what is wrong with a query is known before the long work
    index = GalleryIndex(
        f"{config.cache_dir}/galleries" if config.index is None else config.index,
        model.encoder,
        batch_size=config.batch_size,
        threads=available_cores(),
        on_progress=on_progress,
    )
    known = index.embeddings(gallery)
    refuse_without_pictures(known.broken, len(gallery), run.write_broken(known.broken))
    hits = nearest(known, wanted, top=config.top, backend=config.backend)
    return Found(queries, hits, len(known.names), known.encoded, known.broken)


def write_results(folder: Path, found: Found) -> None:
    """Write `results.csv`, a row a hit; `UserError` if the folder cannot be written."""
    with csv_file(folder / "results.csv") as rows:
        rows.writerow(["rank", "picture", "score", "query"])
        for query, hits in zip(found.queries, found.hits, strict=True):
            rows.writerows([rank, hit.name, f"{hit.score:.5f}", query.text] for rank, hit in enumerate(hits, 1))


def _embed(model: Model, queries: Sequence[Query]) -> Any:
    """[Q, D], rows of unit length."""
    texts = [query.text for query in queries if not query.is_picture]
    pictures = [query.text for query in queries if query.is_picture]
    parts = []
    if texts:
        refuse_unaligned(model, "words")
        parts.append(model.encode_text(texts).float().cpu().numpy())
    if pictures:
        parts.append(model.encode_image(pictures).float().cpu().numpy())
    embeds = np.concatenate(parts)
    if not np.isfinite(embeds).all():
        raise UserError("the model gives NaN or infinity for a query: its weights or its precision are broken")
    return embeds
