"""What every novelty detector has in common: it is fitted to known pictures, and scores others one by one."""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipkit.discovery.signals import Signals
from clipkit.errors import UserError

__all__ = ["Detector", "Labels", "Rows", "Scores", "above_zero", "at_least_one"]

Rows = NDArray[np.float32]  # [N, K]: what a detector looks at, a picture a row
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Fitted = TypeVar("Fitted", bound="Detector")


class Detector(ABC):
    """Learns what is known, then says how novel a picture is.

    Subclasses say what they look at (`_rows`), what they keep of it (`_learn`) and how they judge (`_score`).
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._width: int | None = None

    def fit(self: Fitted, known: Signals, labels: Labels) -> Fitted:
        """Learn from training pictures of the known classes only.

        Args:
            known: N pictures, at least one.
            labels: [N] the class of each, from 0.

        Raises:
            ValueError: no picture, one without a class, or values that are not finite.
        """
        rows = self._checked(known)
        if not len(rows) or labels.shape != (len(rows),) or labels.min() < 0:
            raise ValueError(
                f"{self.name}: {len(rows)} pictures and {labels.shape} labels; one from 0 each is expected"
            )
        self.notes = []
        self._learn(rows, labels)
        self._width = rows.shape[1]
        return self

    def score(self, seen: Signals) -> Scores:
        """[M], higher is more novel; `ValueError` before `fit`, for another width, or values that are not finite."""
        rows = self._checked(seen)
        if self._width != rows.shape[1]:
            raise ValueError(f"{self.name}: fitted to {self._width or 'nothing'}, asked about {rows.shape[1]} columns")
        return self._score(rows) if len(rows) else np.zeros(0)

    def _checked(self, signals: Signals) -> Rows:
        rows = self._rows(signals)
        if not np.isfinite(rows).all():
            raise ValueError(f"{self.name}: what the model says of the pictures holds NaN or infinity")
        return rows

    @abstractmethod
    def _rows(self, signals: Signals) -> Rows: ...

    @abstractmethod
    def _learn(self, rows: Rows, labels: Labels) -> None: ...

    @abstractmethod
    def _score(self, rows: Rows) -> Scores: ...


def at_least_one(what: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what}={value}: a whole number from 1 is expected")
    return value


def above_zero(what: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise UserError(f"{what}={value}: a number above 0 is expected")
    return value
