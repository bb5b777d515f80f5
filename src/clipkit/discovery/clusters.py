"""Pictures grouped by a hierarchy over their embeddings, and how such groups change as pictures are added.

Use: found = cluster(embeds); found.labels, found.members(0), found.nearest(0, embeds, 8)
"""

import warnings
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize

from clipkit.discovery.counting import Estimate, Linkage, cut_height, cut_tree, scores_by_number, weighted_tree
from clipkit.errors import UserError

__all__ = ["Clusters", "Linkage", "changes", "cluster"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MICRO = 2_000  # small groups that stand for the pictures where these are too many for a tree of their own


@dataclass(frozen=True)
class Clusters:
    """N pictures in K clusters, and the tree that was cut.

    Args:
        labels: [N] 0 … K − 1, larger clusters first, equal ones by their first picture.
        linkage: [L − 1, 4] the tree in scipy's form, merges in the order in which they are undone.
        leaf_of: [N] the leaf that each picture is in: its own, or its small group's.
        cut: the height at which the tree was cut, in Ward's distance or 1 − cosine.
        table: clusters against score (`scores_by_number`), where their number was estimated.
        notes: what was decided on the way, for people to read.
    """

    labels: Integers
    linkage: Array
    leaf_of: Integers
    cut: float
    table: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """K."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def members(self, k: int) -> Integers:
        """The rows of cluster k's pictures, rising."""
        return np.flatnonzero(self.labels == k)

    def centres(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """[K, D] each cluster's mean of unit rows, made one long again; `embeds` [N, D]."""
        return np.asarray(normalize(_means(normalize(embeds), self.labels)), np.float32)

    def nearest(self, k: int, embeds: NDArray[np.floating], count: int) -> Integers:
        """The rows of at most `count` pictures of cluster k, those nearest to its centre first."""
        rows = self.members(k)
        unit = normalize(embeds[rows])
        return np.asarray(rows[np.argsort(-(unit @ unit.mean(0)), kind="stable")[:count]])

    def tree(self) -> tuple[Array, Array]:
        """The tree [K − 1, 4] above the clusters, whose leaf k is cluster k; and the height [K] of each one's own top.

        Clusters of one leaf have the height 0.
        """
        if not self.number:
            return np.empty((0, 4)), np.empty(0)
        groups, top = cut_tree(self.linkage, self.number)
        renamed, heights = np.empty(self.number, np.int64), np.zeros(self.number)
        renamed[groups[self.leaf_of]] = self.labels
        leaves = len(self.linkage) + 1
        group = np.concatenate([groups, np.empty(leaves - self.number, np.int64)])
        for row, merge in enumerate(self.linkage[: leaves - self.number]):  # heights never fall: the last is the top
            group[leaves + row] = group[int(merge[0])]
            heights[renamed[group[leaves + row]]] = merge[2]
        ends = top[:, :2].astype(int)
        top[:, :2] = np.where(ends < self.number, renamed[np.minimum(ends, self.number - 1)], ends)
        return top, heights


def cluster(
    embeds: NDArray[np.floating],
    *,
    linkage: Linkage = "ward",
    number: int | None = None,
    distance: float | None = None,
    estimate: Estimate = "silhouette",
    most: int = 50,
    neighbours: int | None = None,
    exact_up_to: int = 10_000,
    seed: int = 0,
) -> Clusters:
    """Agglomerative clustering, cut at a given number of clusters, at a distance, or at the number that scores best.

    Beyond `exact_up_to` pictures, mini-batch k-means (Sculley 2010) first makes up to 2,000 small groups. The tree
    above them is exact: it is the one that the pictures would have, had they been merged into these groups first. With
    `neighbours` the tree is sparse, and this detour is never taken. Equal arguments give equal clusters.

    Args:
        embeds: [N, D]; only the directions of rows count.
        linkage: "ward" on the Euclidean distance of unit rows, or "average" on 1 − cosine.
        number: of clusters; at most N are made.
        distance: the lowest height at which two clusters are left apart, in Ward's distance or 1 − cosine.
        estimate: what chooses among 2 … `most` clusters where neither is given (see `scores_by_number`). Fewer than
            three pictures, or pictures that are all equal, are one cluster.
        most: the largest number that is tried.
        neighbours: merge only clusters that hold pictures among each other's so many nearest; parts of the graph that
            do not touch are joined where they come closest.
        exact_up_to: pictures whose every pair is compared; the memory for it grows with the square, 2 GB at 10,000.
        seed: of mini-batch k-means, and of the sample that a silhouette is computed on beyond 10,000 pictures.

    Raises:
        UserError: an option is out of range, or both `number` and `distance` are given.
        ValueError: `embeds` is no matrix of finite numbers.
    """
    _check(linkage, estimate, number, distance, most=most, neighbours=neighbours, exact_up_to=exact_up_to)
    if embeds.ndim != 2 or not np.isfinite(embeds).all():
        raise ValueError("embeds [N, D] of finite numbers are expected")
    if not len(embeds):
        return Clusters(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, np.int64), 0.0)
    unit: Array = normalize(embeds.astype(np.float64))
    leaf_of, notes = np.arange(len(unit)), []
    if neighbours is not None and len(unit) > 2:
        tree, parts = _sparse_tree(unit, linkage, min(neighbours, len(unit) - 1))
        if parts > 1:
            notes.append(f"the graph of {neighbours} nearest neighbours has {parts:,} parts, joined where closest")
    elif len(unit) > exact_up_to:
        leaf_of = _small_groups(unit, min(MICRO, exact_up_to), seed)
        sizes = np.bincount(leaf_of)
        tree = weighted_tree(_means(unit, leaf_of), sizes, linkage)
        notes.append(
            f"{len(unit):,} pictures were first put into {len(sizes):,} small groups (mini-batch k-means), which the "
            f"tree joins; every pair of pictures is compared up to {exact_up_to:,} (exact_up_to)"
        )
    else:
        tree = _exact_tree(unit, linkage)
    table = None
    if distance is not None:
        number = int((tree[:, 2] >= distance).sum()) + 1
    elif number is None:
        table = scores_by_number(
            unit, leaf_of, tree, measure=estimate, most=most, cosine=linkage == "average", seed=seed
        )
        number = int(table["clusters"][table["chosen"]].sum()) if len(table) else 1
        notes.append(_said(table, estimate, number, most))
    elif number > len(tree) + 1:
        notes.append(f"number={number}: only {len(tree) + 1} clusters can be told apart, so there are no more")
        number = len(tree) + 1
    groups, _ = cut_tree(tree, number)
    cut = distance if distance is not None else cut_height(tree, number)
    return Clusters(_larger_first(groups[leaf_of]), tree, leaf_of, cut, table, tuple(notes))


def changes(before: Integers, after: Integers) -> pd.DataFrame:
    """What each new cluster is made of.

    Args:
        before: [N] old clusters; −1 for pictures that were in none, as those that have come since.
        after: [N] new clusters of the same pictures in the same order; −1 likewise.

    Returns:
        Columns `from`, `to`, `pictures`, and `share`, their part of the new cluster; by `to`, the largest part first.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} old labels and {after.shape} new ones: both are expected for each picture")
    pairs = pd.DataFrame({"from": before, "to": after})
    table = pairs.groupby(["to", "from"]).size().rename("pictures").reset_index()[["from", "to", "pictures"]]
    table["share"] = table["pictures"] / table.groupby("to")["pictures"].transform("sum")
    return table.sort_values(["to", "pictures", "from"], ascending=[True, False, True], ignore_index=True)


def _exact_tree(unit: Array, linkage: Linkage) -> Array:
    if len(unit) == 1:
        return np.empty((0, 4))
    distances = euclidean_distances if linkage == "ward" else cosine_distances
    return np.asarray(scipy_linkage(squareform(distances(unit), checks=False), linkage))


def _sparse_tree(unit: Array, linkage: Linkage, neighbours: int) -> tuple[Array, int]:
    """The tree of merges along a graph of neighbours, and how many parts the graph has."""
    graph = kneighbors_graph(unit, neighbours, include_self=False)
    parts, _ = connected_components(graph, directed=False)
    metric = "euclidean" if linkage == "ward" else "cosine"
    model = AgglomerativeClustering(
        1, metric=metric, connectivity=graph, linkage=linkage, compute_full_tree=True, compute_distances=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the number of connected components", UserWarning)  # it is in the notes
        model.fit(unit)
    sizes = np.ones(2 * len(unit) - 1)
    for row, pair in enumerate(model.children_):
        sizes[len(unit) + row] = sizes[pair].sum()
    # a merge may open a shorter way to a third cluster: no merge is put below those that came before it
    heights = np.maximum.accumulate(model.distances_)
    return np.column_stack([np.sort(model.children_, 1), heights, sizes[len(unit) :]]).astype(np.float64), int(parts)


def _small_groups(unit: Array, number: int, seed: int) -> Integers:
    """[N] the group of each picture, 0 … L − 1; none is empty."""
    # begun at pictures drawn at random: to choose thousands by k-means++ takes minutes, and the clusters are as good
    options = {"init": "random", "max_iter": 3, "reassignment_ratio": 0.0, "batch_size": 4096, "n_init": 1}
    found = MiniBatchKMeans(number, random_state=seed, **options).fit_predict(unit.astype(np.float32))
    return np.asarray(np.unique(found, return_inverse=True)[1], np.int64)


def _means(unit: Array, labels: Integers) -> Array:
    """[K, D] the mean row of each label; every one of 0 … K − 1 occurs."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    return np.asarray(np.add.reduceat(unit[order], np.cumsum(sizes) - sizes, axis=0) / sizes[:, None])


def _larger_first(groups: Integers) -> Integers:
    """The same clusters, numbered by size, equal ones by their first picture."""
    _, first, back, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[back]


def _said(table: pd.DataFrame, measure: Estimate, number: int, most: int) -> str:
    if not len(table):
        return "too few different pictures to estimate a number of clusters: they are kept together"
    score, largest = table[measure][table["chosen"]].item(), int(table["clusters"].max())
    said = f"{number} clusters score best of 2 … {largest} ({measure.replace('_', '–').title()} {score:.3g})"
    return f"{said}; that is the largest number tried (most={most})" if number == most else said


def _check(linkage: str, estimate: str, number: int | None, distance: float | None, **others: int | None) -> None:
    for name, value, valid in (("linkage", linkage, Linkage), ("estimate", estimate, Estimate)):
        if value not in get_args(valid):
            raise UserError(f"{name}={value}: one of {', '.join(get_args(valid))} is expected")
    if number is not None and distance is not None:
        raise UserError(f"number={number} and distance={distance}: the tree is cut by one of them; leave the other out")
    for name, given in {"number": number, **others}.items():
        lowest = 2 if name in ("most", "exact_up_to") else 1
        if given is not None and given < lowest:
            raise UserError(f"{name}={given}: a whole number from {lowest} on is expected")
    if distance is not None and not distance > 0:
        raise UserError(f"distance={distance}: a number above 0 is expected")
