"""A tree over groups of pictures, where to cut a tree, and how many groups are best.

Used by `clipkit.discovery.clusters.cluster`. Trees have scipy's form: [L − 1, 4] for L leaves, a row a merge; node
L + i is what row i made.
"""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score
from sklearn.metrics.pairwise import euclidean_distances

from clipkit.metrics.clustering import silhouettes

__all__ = ["Estimate", "Linkage", "cut_height", "cut_tree", "scores_by_number", "weighted_tree"]

Estimate = Literal["silhouette", "calinski_harabasz", "davies_bouldin"]
Linkage = Literal["ward", "average"]
Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SAMPLE = 10_000  # pictures that a silhouette is the mean of: its time grows with their square
SAME = 1e-6  # merges below this height join pictures that are equal up to rounding


def weighted_tree(centres: Array, weights: Integers, linkage: Linkage) -> Array:
    """The tree of groups of pictures, as it would be if the pictures themselves had been merged into them first.

    Nearest-neighbour chains (Murtagh 1983) with the updates of Lance and Williams (1967); scipy's trees begin with
    groups of one.

    Args:
        centres: [L, D] means of unit rows, not made one long again.
        weights: [L] pictures of each.
        linkage: "ward" or "average".

    Returns:
        [L − 1, 4] in scipy's form.
    """
    size = weights.astype(np.float64)
    if linkage == "ward":
        apart = euclidean_distances(centres, squared=True)
        apart *= 2 * size * size[:, None] / (size + size[:, None])
    else:
        apart = 1 - centres @ centres.T  # the mean of 1 − cosine over all pairs
    np.fill_diagonal(apart, np.inf)
    merges, chain, left = [], list[int](), np.ones(len(size), bool)
    for _ in range(len(size) - 1):
        chain = chain or [int(left.argmax())]
        while True:
            here = apart[chain[-1]]
            nearest = int(here.argmin())
            if len(chain) > 1 and here[chain[-2]] <= here[nearest]:
                break  # each is the other's nearest
            chain.append(nearest)
        one, other = chain.pop(), chain.pop()
        merges.append((one, other, apart[one, other]))
        total = size[one] + size[other]
        if linkage == "ward":
            row = (size[one] + size) * apart[one] + (size[other] + size) * apart[other] - size * apart[one, other]
            row /= total + size
        else:
            row = (size[one] * apart[one] + size[other] * apart[other]) / total
        size[one], left[other], row[one] = total, False, np.inf
        apart[one] = apart[:, one] = row
        apart[other] = apart[:, other] = np.inf
    heights = np.maximum([merge[2] for merge in merges], 0.0)
    order = np.argsort(heights, kind="stable")
    ends = np.array([merge[:2] for merge in merges], np.int64).reshape(-1, 2)[order]
    return _numbered(ends, (np.sqrt(heights) if linkage == "ward" else heights)[order])


def _numbered(ends: Integers, heights: Array) -> Array:
    """Merges of any two leaves of two groups, in scipy's form: each names the nodes that it joins."""
    leaves = len(ends) + 1
    above, tree = np.arange(2 * leaves - 1), np.empty((leaves - 1, 4))
    sizes = np.ones(2 * leaves - 1)
    for row, pair in enumerate(ends):
        nodes = []
        for node in pair:
            while above[node] != node:
                above[node] = node = above[above[node]]
            nodes.append(node)
        sizes[leaves + row] = sizes[nodes].sum()
        above[nodes] = leaves + row
        tree[row] = (*sorted(nodes), heights[row], sizes[leaves + row])
    return tree


def cut_tree(tree: Array, number: int) -> tuple[Integers, Array]:
    """Undo the last merges, so that `number` groups are left.

    Args:
        tree: [L − 1, 4].
        number: of groups K, 1 … L.

    Returns:
        The group [L] of each leaf, 0 … K − 1; and the tree [K − 1, 4] above the groups, whose leaf k is group k.
    """
    leaves = len(tree) + 1
    kept = leaves - number  # merges
    top = tree[kept:].copy()
    first = leaves + kept  # the first node that an undone merge has made
    nodes = np.array([leaves + kept - 1]) if number == 1 else np.sort(top[:, :2][top[:, :2] < first].astype(int))
    group = np.empty(2 * leaves - 1, np.int64)
    group[nodes] = np.arange(number)
    for row in range(kept - 1, -1, -1):  # from the top down
        group[tree[row, :2].astype(int)] = group[leaves + row]
    ends = top[:, :2].astype(int)
    top[:, :2] = np.where(ends < first, group[np.minimum(ends, first - 1)], ends - first + number)
    sizes = np.ones(2 * number - 1)
    for row, (left, right) in enumerate(top[:, :2].astype(int)):
        sizes[number + row] = top[row, 3] = sizes[left] + sizes[right]
    return group[:leaves], top


def cut_height(tree: Array, number: int) -> float:
    """A height between the last merge that is kept and the first that is undone."""
    kept = len(tree) - number  # the last one's row, −1 for none
    below = tree[kept, 2] if kept >= 0 else 0.0
    above = tree[kept + 1, 2] if kept + 1 < len(tree) else 1.1 * below
    return float(below + above) / 2


def scores_by_number(
    unit: Array, leaf_of: Integers, tree: Array, *, measure: Estimate, most: int, cosine: bool, seed: int
) -> pd.DataFrame:
    """How well each number of clusters from 2 on fits the pictures.

    A number that would tear equal pictures apart is left out.

    Args:
        unit: [N, D] rows of unit length.
        leaf_of: [N] the leaf of the tree that each picture is in.
        tree: [L − 1, 4].
        measure: the silhouette (Rousseeuw 1987; the largest is best), the Calinski–Harabasz index (1974; the largest)
            or the Davies–Bouldin index (1979; the smallest).
        most: the largest number.
        cosine: whether the silhouette's distance is 1 − cosine; else it is Euclidean, as the other two always are.
        seed: draws the pictures for the silhouette beyond 10,000.

    Returns:
        Columns `clusters`, the measure by its name, and `chosen`, true for the best (the smallest number among equals).
        Empty where there is nothing to choose from.
    """
    different = int((tree[:, 2] > SAME).sum()) + 1
    numbers = np.arange(2, min(most, different, len(tree), len(unit) - 1) + 1)
    if not len(numbers):
        return pd.DataFrame({"clusters": numbers, measure: np.empty(0), "chosen": np.empty(0, bool)})
    finest, top = cut_tree(tree, int(numbers[-1]))
    coarser = np.stack([cut_tree(top, int(number))[0] for number in numbers])  # [numbers, finest]
    labels = finest[leaf_of]
    if measure == "silhouette":
        rows = np.arange(len(unit))
        if len(unit) > SAMPLE:
            rows = np.sort(np.random.default_rng(seed).choice(len(unit), SAMPLE, replace=False))
        scores = silhouettes(unit[rows], labels[rows], coarser, cosine=cosine)
    else:
        score = calinski_harabasz_score if measure == "calinski_harabasz" else davies_bouldin_score
        scores = np.array([score(unit, row[labels]) for row in coarser])
    best = scores.argmin() if measure == "davies_bouldin" else scores.argmax()
    return pd.DataFrame({"clusters": numbers, measure: scores, "chosen": np.arange(len(numbers)) == best})
