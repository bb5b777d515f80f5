"""Names proposed for clusters: the words of a vocabulary that a model finds nearest to a cluster's centre.

Use: words = read_vocabulary(None); propose_names(found.centres(embeds), words, model.encode_text(words).numpy())
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.preprocessing import normalize

from clipkit.data.images import ZipReader
from clipkit.data.sources.emoji import ARCHIVE
from clipkit.errors import UserError

__all__ = ["propose_names", "read_vocabulary"]


def propose_names(
    centres: NDArray[np.floating],
    words: Sequence[str],
    word_embeds: NDArray[np.floating],
    *,
    origin: NDArray[np.floating] | None = None,
    top: int = 5,
    centred: bool = True,
) -> list[list[tuple[str, float]]]:
    """The words most similar to each cluster's centre; first names of different clusters differ.

    Pictures and texts lie in different regions (the modality gap, arXiv 2203.02053), and some words lie near all
    pictures. So centres are taken relative to where pictures lie, and words relative to their own mean, before cosines
    are computed. First names are assigned so that the sum of their similarities is largest (Hungarian algorithm); all
    other names follow by similarity, and may be proposed for several clusters.

    Args:
        centres: [K, D] of clusters.
        words: V of them.
        word_embeds: [V, D] by the same model.
        origin: [D] the mean embedding of many pictures, best of all kinds; without it, the mean of the centres. One
            centre alone has no other place to be compared with: it is then taken as it is, and so are the words.
        top: names for each cluster; at most V.
        centred: False for plain cosines, as in zero-shot classification.

    Returns:
        K lists of (word, similarity), the first name first. With fewer words than clusters, first names are given out
        once, and the clusters without one have their nearest word.
    """
    if not len(words) or len(words) != len(word_embeds) or centres.shape[1:] != word_embeds.shape[1:]:
        found = f"{len(words)} words, centres {centres.shape}, words' embeddings {word_embeds.shape}"
        raise ValueError(f"{found}: one or more words with an embedding each, as wide as the centres, are expected")
    if not len(centres):
        return []
    if centred and (origin is not None or len(centres) > 1):
        centres = normalize(centres) - (normalize(centres).mean(0) if origin is None else origin)
        word_embeds = normalize(word_embeds) - normalize(word_embeds).mean(0)
    similarity = normalize(centres) @ normalize(word_embeds).T  # [K, V]
    ranked = np.argsort(-similarity, axis=1, kind="stable")
    first = ranked[:, 0].copy()
    clusters, assigned = linear_sum_assignment(similarity, maximize=True)
    first[clusters] = assigned
    names = []
    for row, own, others in zip(similarity, first, ranked, strict=True):
        order = [own, *others[others != own]][:top]
        names.append([(words[word], float(row[word])) for word in order])
    return names


def read_vocabulary(path: str | Path | None) -> list[str]:
    """The words that clusters may be called by, each once, in their order.

    Args:
        path: a UTF-8 text file, one word or phrase a line; empty lines and those that begin with # do not count. None
            for the words of the embedded emoji set: 826 concepts and the 48 sub-groups that they belong to.

    Raises:
        UserError: the file cannot be read, is no UTF-8 text, or holds no word.
    """
    if path is None:
        concepts = json.loads(ZipReader(ARCHIVE).read("concepts.json"))
        labels = [concept["label"] for concept in concepts]
        subgroups = [concept["subgroup"].replace("-", " ") for concept in concepts]
        return list(dict.fromkeys(word.lower() for word in labels + subgroups))
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"vocabulary {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"vocabulary {path} is no UTF-8 text; save the file as UTF-8") from error
    lines = [line.strip() for line in text.splitlines()]
    words = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not words:
        raise UserError(f"vocabulary {path} holds no words: one a line is expected, besides comments that begin with #")
    return words
