"""Novelty detectors that look at where a picture lies among the training pictures; the names are in `detectors.py`."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from sklearn.covariance import ledoit_wolf, shrunk_covariance
from sklearn.ensemble import IsolationForest as Forest
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import normalize

from clipkit.discovery.detector import Detector, Labels, Rows, Scores, at_least_one
from clipkit.discovery.signals import Signals
from clipkit.errors import UserError

__all__ = ["KNN", "LOF", "DistanceDetector", "IsolationForest", "Mahalanobis", "Space"]

Space = Literal["embeds", "features"]
LEAST_SHRINKAGE = 1e-6  # Ledoit and Wolf's estimate can be 0 for a handful of pictures: their covariance is singular


class DistanceDetector(Detector):
    """Looks at where pictures lie.

    Args:
        space: "embeds" after the projection, or "features" of the image tower before it; both at unit length.
    """

    def __init__(self, *, space: Space = "embeds") -> None:
        super().__init__()
        if space not in ("embeds", "features"):
            raise UserError(f"{self.name}.space={space}: embeds or features is expected")
        self.space = space

    def _rows(self, signals: Signals) -> Rows:
        rows: Rows = normalize(signals.features) if self.space == "features" else signals.embeds
        return rows

    def _neighbours(self, k: int, pictures: int, labels: Labels, *, itself: int) -> int:
        """k, or as many neighbours as there are; `itself` is 1 where a picture is no neighbour of its own."""
        fitting = min(k, pictures - itself)
        if fitting < k:
            self._say(f"k={k} lowered to {fitting}, there are {_number(pictures, 'training picture')}")
        sizes = np.unique(labels, return_counts=True)[1]
        if len(sizes) > 1 and fitting > (smallest := int(sizes.min())) - itself:
            least = _number(smallest, "training picture")
            self._say(f"k={fitting}, and the smallest class has {least}: neighbours come from other classes too")
        return fitting

    def _say(self, text: str) -> None:
        self.notes.append(f"{self.name}: {text}")


class LOF(DistanceDetector):
    """Local outlier factor (Breunig et al. 2000): how much sparser it is around a picture than around its neighbours.

    Copies of a training picture count once: they would be infinitely dense (the paper's remedy, too).

    Args:
        k: neighbours; lowered where there are fewer pictures.
        limit: more training pictures than this are sampled evenly, the same ones each time: the time of fitting grows
            with the square of their number, that of scoring with the number.
        space: see `DistanceDetector`.
    """

    name = "lof"

    def __init__(self, *, k: int = 7, limit: int = 50_000, space: Space = "embeds") -> None:
        super().__init__(space=space)
        self.k, self.limit = at_least_one(f"{self.name}.k", k), at_least_one(f"{self.name}.limit", limit)

    def _learn(self, rows: Rows, labels: Labels) -> None:
        kept = _distinct(rows)
        if len(kept) < len(rows):
            self._say(f"{_number(len(rows) - len(kept), 'copy', 'copies')} of training pictures left out")
        if len(kept) > self.limit:
            self._say(f"fitted to {self.limit:,} of {len(kept):,} training pictures (limit)")
            kept = np.sort(np.random.default_rng(0).choice(kept, self.limit, replace=False))
        if len(kept) == 1:
            self._say("there is one training picture, and no density: the score is the distance to it")
            self._model: Any = NearestNeighbors(n_neighbors=1).fit(rows[kept])
            return
        k = self._neighbours(self.k, len(kept), labels[kept], itself=1)
        self._model = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(rows[kept])

    def _score(self, rows: Rows) -> Scores:
        if isinstance(self._model, NearestNeighbors):
            return _furthest(self._model, rows)
        return -np.asarray(self._model.score_samples(rows), np.float64)


class KNN(DistanceDetector):
    """The Euclidean distance to the k-th nearest training picture (arXiv 2204.06507).

    Args:
        k: lowered where there are fewer pictures.
        space: see `DistanceDetector`.
    """

    name = "knn"

    def __init__(self, *, k: int = 5, space: Space = "embeds") -> None:
        super().__init__(space=space)
        self.k = at_least_one(f"{self.name}.k", k)

    def _learn(self, rows: Rows, labels: Labels) -> None:
        k = self._neighbours(self.k, len(rows), labels, itself=0)
        self._model = NearestNeighbors(n_neighbors=k).fit(rows)

    def _score(self, rows: Rows) -> Scores:
        return _furthest(self._model, rows)


class Mahalanobis(DistanceDetector):
    """The least Mahalanobis distance to a class's mean, all classes having one covariance (arXiv 1807.03888, eq. 2).

    Args:
        covariance: "ledoit_wolf" (2004) is shrunk towards a sphere, and can be inverted with any number of pictures;
            "empirical" is the paper's, the mean of outer products, with a millionth added to their sum (as pytorch-ood
            has it): for many more pictures than dimensions.
        space: see `DistanceDetector`.
    """

    name = "mahalanobis"

    def __init__(
        self, *, covariance: Literal["ledoit_wolf", "empirical"] = "ledoit_wolf", space: Space = "embeds"
    ) -> None:
        super().__init__(space=space)
        if covariance not in ("ledoit_wolf", "empirical"):
            raise UserError(f"mahalanobis.covariance={covariance}: choose from ledoit_wolf, empirical")
        self.covariance = covariance

    def _learn(self, rows: Rows, labels: Labels) -> None:
        classes, numbers = np.unique(labels, return_inverse=True)
        exact = rows.astype(np.float64)
        self._centre = exact.mean(0)
        exact -= self._centre
        means = np.stack([exact[numbers == number].mean(0) for number in range(len(classes))])  # [C, K]
        exact -= means[numbers]
        size = np.square(exact).mean()
        if size <= np.finfo(np.float32).eps ** 2:  # no more than rounding: there is no direction to learn
            self._say("pictures of a class do not differ (one each, or copies): the distance is Euclidean")
            covariance = np.eye(rows.shape[1])
        elif self.covariance == "empirical":
            covariance = (exact.T @ exact + 1e-6 * np.eye(exact.shape[1])) / len(exact)
        else:
            covariance, shrinkage = ledoit_wolf(exact, assume_centered=True)
            if shrinkage < LEAST_SHRINKAGE:
                covariance = shrunk_covariance(covariance, LEAST_SHRINKAGE)
        self._root = cholesky(covariance, lower=True)
        self._means = self._whitened(means)

    def _score(self, rows: Rows) -> Scores:
        whitened = self._whitened(rows - self._centre)
        return np.asarray(pairwise_distances_argmin_min(whitened, self._means)[1], np.float64)

    def _whitened(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.ascontiguousarray(solve_triangular(self._root, rows.T, lower=True).T)


class IsolationForest(DistanceDetector):
    """How few random cuts set a picture apart (Liu et al. 2008), 0–1.

    Args:
        trees: how many; each sees 256 training pictures.
        seed: of the cuts.
        space: see `DistanceDetector`.
    """

    name = "isolation_forest"

    def __init__(self, *, trees: int = 100, seed: int = 0, space: Space = "embeds") -> None:
        super().__init__(space=space)
        self.trees, self.seed = at_least_one(f"{self.name}.trees", trees), seed

    def _learn(self, rows: Rows, labels: Labels) -> None:
        if (rows == rows[0]).all():
            self._say("the training pictures do not differ: nothing can be cut apart, and all scores are equal")
        self._model = Forest(n_estimators=self.trees, random_state=self.seed).fit(rows)

    def _score(self, rows: Rows) -> Scores:
        return -np.asarray(self._model.score_samples(rows), np.float64)


def _furthest(model: Any, rows: Rows) -> Scores:
    """[M] the distance to the last of the neighbours that are asked."""
    return np.asarray(model.kneighbors(rows)[0][:, -1], np.float64)


def _distinct(rows: Rows) -> NDArray[np.int64]:
    """Row numbers of the first of each set of copies."""
    first: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row.tobytes(), number)
    return np.fromiter(first.values(), np.int64, len(first))


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
