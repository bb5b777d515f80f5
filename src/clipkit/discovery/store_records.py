"""What a novelty store is given and gives back, and the hash that it knows a picture by."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import UserError

__all__ = ["Clustering", "Counts", "Scored", "Stored", "checked_embeds", "content_hash"]


@dataclass(frozen=True)
class Scored:
    """One picture as it was scored.

    Args:
        name: absolute path.
        content: `content_hash` of the file, which is the picture's identity.
        score: of novelty, finite.
        novel: whether the score is beyond the threshold.
        label: the known class it was taken for.
    """

    name: str
    content: str
    score: float
    novel: bool
    label: str


@dataclass(frozen=True)
class Stored(Scored):
    """A picture in the store; `novel` until its cluster is accepted.

    Args:
        row: from 0, in the order of arrival; the row of its embedding.
        cluster: in the last clustering, below 0 for none; None if that did not see it.
        accepted: the class that its cluster became, or "".
    """

    row: int
    cluster: int | None
    accepted: str


@dataclass(frozen=True)
class Counts:
    """Pictures taken for known classes, novel ones, and those of accepted clusters."""

    known: int
    novel: int
    accepted: int


@dataclass(frozen=True)
class Clustering:
    """One clustering of the history.

    Args:
        number: from 1.
        when: it was added, UTC.
        pictures: how many it saw.
        clusters: how many it found.
        about: what was said of it.
    """

    number: int
    when: datetime
    pictures: int
    clusters: int
    about: dict[str, Any]


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read in pieces; `UserError` where it cannot be read."""
    digest, piece = hashlib.sha256(), bytearray(2**18)
    view = memoryview(piece)
    try:
        with open(path, "rb", buffering=0) as file:
            while length := file.readinto(piece):
                digest.update(view[:length])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def checked_embeds(pictures: Sequence[Scored], embeds: NDArray[np.floating], *, embed_dim: int) -> NDArray[np.float32]:
    """Embeddings as float32, after everything that could be wrong with them and their n pictures.

    Args:
        pictures: n.
        embeds: [n, D].
        embed_dim: the D that is expected.

    Raises:
        UserError: another D; NaN or infinity in an embedding or a score.
        ValueError: not as many embeddings as pictures, a relative path, or no SHA-256.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is found below
        values = np.asarray(embeds).astype(np.float32)
    if values.ndim != 2 or len(values) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures and embeddings {values.shape}: [n, D] is expected")
    if values.shape[1] != embed_dim:
        raise UserError(
            f"the embeddings have {values.shape[1]} numbers, and the store holds ones of {embed_dim}: they are another "
            "model's. Choose another folder, or the model that wrote this one"
        )
    finite = np.isfinite(values)
    for row, picture in enumerate(pictures):
        if not finite[row].all() or not math.isfinite(picture.score):
            found = f"the score {picture.score}" if finite[row].all() else "NaN or infinity in its embedding"
            raise UserError(f"{picture.name} has {found}: the model's weights or precision are broken")
        if not re.fullmatch("[0-9a-f]{64}", picture.content) or not os.path.isabs(picture.name):
            raise ValueError(f"{picture}: an absolute path and a SHA-256 in hexadecimal are expected")
    return values
