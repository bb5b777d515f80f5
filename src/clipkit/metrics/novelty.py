"""How well a score tells pictures of unknown classes from known ones, and where to draw the line between them."""

from math import floor

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

__all__ = ["novelty_metrics", "threshold_at"]

ROUNDING = 1e-9  # 0.29 of 100 pictures are 29, though the product of floats is a little less


def novelty_metrics(scores: ArrayLike, novel: ArrayLike) -> dict[str, float]:
    """All in 0–1. Nothing here needs a threshold: the metrics run over all of them, or set their own.

    Args:
        scores: [N], higher is more novel.
        novel: [N] bool; some pictures are novel, some known.

    Returns:
        `auroc`, the chance that a novel picture scores above a known one, a tie being half of it. `aupr_novel` and
        `aupr_known`, the average precision with that kind as the one sought (chance is its share of the pictures).
        `fpr95`, **the known ones being the positives**: the share of the novel pictures still taken for known at the
        threshold that accepts at least 95 % of the known ones (libraries disagree: some find 95 % of the novel ones
        and count false alarms). `eer`, the equal error rate: where as large a share of the known pictures is refused
        as of the novel ones is accepted, between two thresholds by linear interpolation.

    Raises:
        ValueError: one of the kinds is missing, a score is not finite, or the lengths differ.
    """
    values, kinds = _finite(scores), np.asarray(novel, dtype=bool)
    if values.shape != kinds.shape:
        raise ValueError(f"{values.shape} scores for {kinds.shape} pictures")
    if kinds.all() or not kinds.any():
        raise ValueError(f"{kinds.sum()} of {len(kinds)} pictures are novel: both known and novel ones are needed")
    line = threshold_at(values[~kinds], 0.05)
    return {
        "auroc": float(roc_auc_score(kinds, values)),
        "aupr_known": float(average_precision_score(~kinds, -values)),
        "aupr_novel": float(average_precision_score(kinds, values)),
        "fpr95": float((values[kinds] <= line).mean()),
        "eer": _equal_error_rate(values, kinds),
    }


def threshold_at(known_scores: ArrayLike, false_alarms: float) -> float:
    """The smallest threshold above which no more than this share of the known pictures lies.

    A picture is called novel where its score is above the threshold; equal scores are on the same side. Only known
    pictures are asked: what is novel need not be seen for it.

    Args:
        known_scores: [N], at least one, higher is more novel; of pictures that the detector was not fitted to.
        false_alarms: share of the known pictures that may be called novel, above 0 and below 1.

    Raises:
        ValueError: no score, one that is not finite, or a share outside.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms={false_alarms}: a share above 0 and below 1 is expected")
    values = np.sort(_finite(known_scores))
    if not len(values):
        raise ValueError("a threshold needs the score of at least one known picture")
    above = min(floor(false_alarms * len(values) + ROUNDING), len(values) - 1)
    return float(values[len(values) - 1 - above])


def _equal_error_rate(values: NDArray[np.float64], kinds: NDArray[np.bool_]) -> float:
    refused, found, _ = roc_curve(kinds, values, drop_intermediate=False)  # of the known, of the novel; rising from 0
    ahead = refused - (1 - found)  # from −1 to 1
    right = int(np.argmax(ahead >= 0))
    share = -ahead[right - 1] / (ahead[right] - ahead[right - 1])  # of the way from the point before
    return float(refused[right - 1] + share * (refused[right] - refused[right - 1]))


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("novelty scores hold NaN or infinity: no threshold would mean anything")
    if values.ndim != 1:
        raise ValueError(f"one score a picture is expected, not an array of {values.shape}")
    return values
