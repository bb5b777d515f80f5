"""One novelty score of several detectors': the mean of their ranks among known pictures held out from their fitting.

average = RankAverage([lof, mahalanobis], reference=held_out)
scores = average.score(seen)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.discovery.detector import Detector, Scores
from clipkit.discovery.signals import Signals

__all__ = ["RankAverage", "rank_among"]


class RankAverage:
    """Ranks have no unit: detectors whose scores do are averaged, and none is heard more for its scale.

    The reference is fixed when this is made, so that a picture's score never depends on the pictures beside it.

    Args:
        members: fitted detectors, at least one.
        reference: known pictures, at least one, that no member was fitted to: those would look too familiar.
    """

    name = "rank_average"

    def __init__(self, members: Sequence[Detector], reference: Signals) -> None:
        if not members or not len(reference):
            raise ValueError(f"{len(members)} detectors and {len(reference)} reference pictures: one each is needed")
        self.members = tuple(members)
        self._references = [np.sort(member.score(reference)) for member in members]

    @property
    def notes(self) -> list[str]:
        """The members'."""
        return [note for member in self.members for note in member.notes]

    def score(self, seen: Signals) -> Scores:
        """[M], higher is more novel: the mean of the members' ranks (see `rank_among`)."""
        return self.average([member.score(seen) for member in self.members])

    def average(self, scores: Sequence[Scores]) -> Scores:
        """[M] from the members' own [M] scores, in their order, where these are known already."""
        ranks = [rank_among(reference, values) for reference, values in zip(self._references, scores, strict=True)]
        return np.asarray(np.mean(ranks, axis=0))


def rank_among(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> Scores:
    """The share of the reference below each score, which goes on beyond the reference's range, strictly rising.

    Among the n reference scores a score s has the rank (b + e / 2 + 1 / 2) / (n + 1), where b of them are lower and e
    equal (ties have the middle rank): from 1 / (n + 1) to n / (n + 1). Beyond the largest, m, the rank is
    n / (n + 1) + log(1 + (s − m) / d), and below the smallest likewise downward, d being the standard deviation of the
    reference scores (1 where these are equal). So scores far out keep their order, and a detector that finds a picture
    ten times as strange adds a step, not ten times as much.

    Args:
        reference: [n] rising, at least one.
        scores: [M].
    """
    count, lowest, highest = len(reference), reference[0], reference[-1]
    lower, up_to = (np.searchsorted(reference, scores, side=side) for side in ("left", "right"))
    ranks = ((lower + up_to) / 2 + 0.5) / (count + 1)
    spread = float(reference.std()) if highest > lowest else 1.0
    beyond = np.log1p(np.maximum(scores - highest, 0) / spread)
    before = np.log1p(np.maximum(lowest - scores, 0) / spread)
    inside = np.clip(ranks, 1 / (count + 1), count / (count + 1))
    return np.asarray(inside + beyond - before)
