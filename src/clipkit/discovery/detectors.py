"""Novelty detectors by name: how unlike the training pictures of the known classes a picture is; higher is more novel.

    detectors = make_detectors(["lof", "knn"], lof={"k": 5})
    scores = {name: detector.fit(known, labels).score(seen) for name, detector in detectors.items()}

Those that ask where a picture lies are in `distances.py`; here are those that ask the classifier. A picture's score
never depends on the pictures it is scored with. What a detector had to change to be fitted (few pictures, copies) is
in its `notes`. `rank_average.py` makes one score of several detectors'.
"""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

from clipkit.discovery.detector import Detector, Labels, Rows, Scores, above_zero
from clipkit.discovery.distances import KNN, LOF, IsolationForest, Mahalanobis
from clipkit.discovery.signals import Signals
from clipkit.errors import UserError

__all__ = ["DETECTORS", "KNN", "LOF", "MCM", "Detector", "Energy", "IsolationForest", "Mahalanobis", "MaxLogit"]
__all__ += ["make_detectors"]


class MCM(Detector):
    """Minus the largest softmax of the cosines with the known classes' texts (arXiv 2211.13445, section 3): −1–0.

    Args:
        temperature: cosines are divided by it. The paper's is 1; a CLIP is trained at 1 / logit_scale, about 0.01,
            where nearly every picture is sure of something. 0.1 lies between.
    """

    name = "mcm"

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = above_zero(f"{self.name}.temperature", temperature)

    def _rows(self, signals: Signals) -> Rows:
        return signals.cosines

    def _learn(self, rows: Rows, labels: Labels) -> None:
        if rows.shape[1] == 1:
            self.notes.append(f"{self.name}: with one known class the softmax is always 1, and all scores are equal")

    def _score(self, rows: Rows) -> Scores:
        return -np.asarray(softmax(rows.astype(np.float64) / self.temperature, axis=1).max(1), np.float64)


class MaxLogit(Detector):
    """Minus the largest logit (arXiv 1911.11132)."""

    name = "max_logit"

    def _rows(self, signals: Signals) -> Rows:
        return signals.logits

    def _learn(self, rows: Rows, labels: Labels) -> None:
        """The classifier has learnt all there is to know."""

    def _score(self, rows: Rows) -> Scores:
        return np.asarray(-rows.max(1), np.float64)


class Energy(MaxLogit):
    """The energy −T logsumexp(logits / T) (arXiv 2010.03759, section 3).

    Args:
        temperature: T; towards 0 the score becomes that of `MaxLogit`.
    """

    name = "energy"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = above_zero(f"{self.name}.temperature", temperature)

    def _score(self, rows: Rows) -> Scores:
        return -self.temperature * np.asarray(logsumexp(rows.astype(np.float64) / self.temperature, axis=1), np.float64)


KINDS: tuple[type[Detector], ...] = (LOF, KNN, Mahalanobis, IsolationForest, MCM, MaxLogit, Energy)
DETECTORS: dict[str, type[Detector]] = {kind.name: kind for kind in KINDS}


def make_detectors(names: Sequence[str] | None = None, **options: Mapping[str, Any]) -> dict[str, Detector]:
    """Detectors by name, not fitted yet.

    Args:
        names: from `DETECTORS`; all of them where none are given.
        options: arguments by detector, for example `lof={"k": 5}`; those of detectors that are not asked are not used.

    Raises:
        UserError: no such detector, no such option, or a value that cannot be.
    """
    asked = list(DETECTORS) if names is None else [names] if isinstance(names, str) else list(names)
    for name in (*asked, *options):
        _known("detector", name, DETECTORS)
    for name, values in options.items():
        for key in values:
            _known(f"option of {name}", key, inspect.signature(DETECTORS[name]).parameters)
    return {name: DETECTORS[name](**options.get(name, {})) for name in asked}


def _known(what: str, name: str, valid: Mapping[str, Any]) -> None:
    if name not in valid:
        near = get_close_matches(str(name), valid, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"no {what} is called {name}{hint}; choose from {', '.join(valid) or 'none'}")
