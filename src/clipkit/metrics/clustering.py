"""How well groups that were found without labels agree with the true classes, and how clearly they stand apart."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

__all__ = ["clustering_metrics", "silhouettes"]

Array = NDArray[np.float64]

AT_ONCE = 2**24  # distances in memory


def clustering_metrics(
    truth: NDArray[np.integer], clusters: NDArray[np.integer], *, known: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Agreement of clusters with classes; the names of either make no difference.

    Accuracy is that of generalised category discovery (arXiv 2201.02609, section 3.3): each cluster stands for at most
    one class and each class for at most one cluster, so that as many pictures as possible are right (Hungarian
    algorithm). There is one assignment, over all pictures; the accuracies of known and novel classes are read off it.
    Where several assignments are equally good for all, these two may depend on which is taken.

    Args:
        truth: [N] the class of each picture, N at least 1.
        clusters: [N] the cluster of each.
        known: [N] whether a picture's class is one that training showed.

    Returns:
        `ari`, the adjusted Rand index, at most 1, and 0 on average for clusters at random; `nmi`, the normalised mutual
        information (arithmetic mean), 0–1; `accuracy_all`, 0–1; with `known` also `accuracy_known` and
        `accuracy_novel`, each only if there are such pictures.

    Raises:
        ValueError: shapes differ, there is no picture, or a label is negative: −1 means that a picture has none, and
            such pictures are to be left out.
    """
    truth, clusters = np.asarray(truth), np.asarray(clusters)
    known = None if known is None else np.asarray(known, bool)
    shapes = [array.shape for array in (truth, clusters, known) if array is not None]
    if not len(truth) or truth.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"shapes {shapes}: one label, and one cluster, for each of one or more pictures are expected")
    if min(truth.min(), clusters.min()) < 0:
        raise ValueError("a negative class or cluster is none: leave such pictures out")
    right = _right(truth, clusters)
    metrics = {
        "ari": float(adjusted_rand_score(truth, clusters)),
        "nmi": float(normalized_mutual_info_score(truth, clusters)),
        "accuracy_all": float(right.mean()),
    }
    for name, part in () if known is None else (("accuracy_known", known), ("accuracy_novel", ~known)):
        if part.any():
            metrics[name] = float(right[part].mean())
    return metrics


def silhouettes(unit: Array, labels: NDArray[np.int64], coarser: NDArray[np.int64], *, cosine: bool) -> Array:
    """The mean silhouette of several nested groupings, from one pass over the distances.

    A picture's distances to the finest groups are summed once; sums for coarser groups are sums of these.

    Args:
        unit: [N, D] rows of unit length.
        labels: [N] the finest groups.
        coarser: [G, K] for each grouping, the group that a finest group belongs to.
        cosine: whether distances are 1 − cosine; else Euclidean.

    Returns:
        [G] as `sklearn.metrics.silhouette_score` gives them; a group of one picture counts 0.
    """
    distances = cosine_distances if cosine else euclidean_distances
    totals = np.zeros(len(coarser))
    members = np.eye(coarser.shape[1])[labels]  # [N, K]
    for rows in np.array_split(np.arange(len(unit)), max(1, len(unit) ** 2 // AT_ONCE)):
        sums = distances(unit[rows], unit) @ members  # [B, K]
        for grouping, merged in enumerate(coarser):
            joined = np.eye(merged.max() + 1)[merged]  # [K, k]
            sizes, own = members.sum(0) @ joined, merged[labels[rows]]
            among = (sums @ joined)[np.arange(len(rows)), own] / np.maximum(sizes[own] - 1, 1)
            others = sums @ joined / np.where(sizes > 0, sizes, np.nan)  # a sample may miss a group
            others[np.arange(len(rows)), own] = np.nan
            nearest = np.nanmin(np.column_stack([others, np.full(len(rows), np.inf)]), axis=1)
            width = np.maximum(among, nearest)
            known = (sizes[own] > 1) & (width > 0) & np.isfinite(nearest)
            totals[grouping] += ((nearest - among)[known] / width[known]).sum()
    return totals / len(unit)


def _right(truth: NDArray[np.integer], clusters: NDArray[np.integer]) -> NDArray[np.bool_]:
    """[N] the pictures whose cluster stands for their class."""
    classes, truth = np.unique(truth, return_inverse=True)
    counts = contingency_matrix(truth, clusters)  # [classes, clusters], both in rising order
    rows, columns = linear_sum_assignment(counts, maximize=True)
    stands_for = np.full(counts.shape[1], len(classes))  # no class, unless one is assigned
    stands_for[columns] = rows
    _, clusters = np.unique(clusters, return_inverse=True)
    return np.asarray(stands_for[clusters] == truth)
