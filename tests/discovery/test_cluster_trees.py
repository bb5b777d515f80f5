"""Clusters against scikit-learn's; their number, the path for many pictures, and what a person gets wrong."""

import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import dendrogram, fcluster, is_valid_linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, davies_bouldin_score, silhouette_score
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize

from clipkit.discovery.clusters import Linkage, changes, cluster
from clipkit.discovery.counting import weighted_tree
from clipkit.errors import UserError

METRIC = {"ward": "euclidean", "average": "cosine"}


def drawn(count: int = 200, width: int = 12) -> np.ndarray:
    """Pictures that do not fall into clusters: the tree's every merge is put to the test. Lengths vary."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, width)) * rng.uniform(0.1, 9, (count, 1))).astype(np.float32)


def blobs(sizes: list[int], *, noise: float = 0.06, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Well-separated clusters in a random order, and which picture is of which."""
    rng = np.random.default_rng(1)
    centres = normalize(rng.normal(size=(len(sizes), width)))
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    embeds = centres[truth] + noise * rng.normal(size=(len(truth), width))
    return embeds.astype(np.float32), truth


def distance(one: np.ndarray, other: np.ndarray, linkage: str) -> float:
    """Ward's, scaled so that it is the Euclidean one for two pictures; or the mean of 1 − cosine over all pairs."""
    if linkage == "average":
        return float(1 - (one @ other.T).mean())
    share = len(one) * len(other) / (len(one) + len(other))
    return float(np.sqrt(2 * share) * np.linalg.norm(one.mean(0) - other.mean(0)))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two clusterings differ in names alone."""
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.parametrize("neighbours", [None, 6])
@pytest.mark.parametrize("linkage", ["ward", "average"])
class TestAgainstScikitLearn:
    def expected(self, embeds: np.ndarray, linkage: str, neighbours: int | None, **cut: Any) -> np.ndarray:
        if cut["n_clusters"] == len(embeds):
            return np.arange(len(embeds))  # scikit-learn fails here with "average" and a graph
        unit = normalize(embeds.astype(np.float64))
        graph = None if neighbours is None else kneighbors_graph(unit, neighbours, include_self=False)
        options = {"linkage": linkage, "metric": METRIC[linkage], "connectivity": graph}
        return np.asarray(AgglomerativeClustering(**cut, **options).fit_predict(unit))

    @pytest.mark.parametrize("number", [1, 2, 7, 60, 200])
    def test_a_given_number(self, linkage: Linkage, neighbours: int | None, number: int) -> None:
        embeds = drawn()
        found = cluster(embeds, linkage=linkage, number=number, neighbours=neighbours)
        assert same(found.labels, self.expected(embeds, linkage, neighbours, n_clusters=number))
        assert found.number == number

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.1])
    def test_a_given_distance(self, linkage: Linkage, neighbours: int | None, share: float) -> None:
        embeds, _ = blobs([30, 20, 12, 5], noise=0.2)
        distance = share * cluster(embeds, linkage=linkage, neighbours=neighbours).linkage[-1, 2]
        found = cluster(embeds, linkage=linkage, distance=distance, neighbours=neighbours)
        cut = {"n_clusters": None, "distance_threshold": distance, "compute_full_tree": True}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the number of connected components")
            assert same(found.labels, self.expected(embeds, linkage, neighbours, **cut))
        assert found.cut == distance


@pytest.mark.parametrize("options", [{}, {"linkage": "average"}, {"neighbours": 4}, {"exact_up_to": 60}])
def test_the_tree_is_scipys_and_its_cut_gives_the_labels(options: dict[str, Any]) -> None:
    found = cluster(drawn(), number=9, **options)
    assert is_valid_linkage(found.linkage)
    assert len(dendrogram(found.linkage, no_plot=True)["leaves"]) == len(found.linkage) + 1
    assert same(fcluster(found.linkage, found.cut, "distance")[found.leaf_of], found.labels)
    above, heights = found.tree()
    assert is_valid_linkage(above)
    assert len(heights) == len(above) + 1 == 9
    assert heights.max() <= found.cut <= above[:, 2].min()
    np.testing.assert_array_equal(above[:, 2], found.linkage[-8:, 2])


def test_the_tree_above_the_clusters_joins_the_clusters_that_merge() -> None:
    embeds = drawn()
    found = cluster(embeds, number=9)
    left, right = (int(node) for node in found.tree()[0][0, :2])
    joined = np.where(found.labels == right, left, found.labels)
    assert same(joined, cluster(embeds, number=8).labels)
    for k, height in enumerate(found.tree()[1]):
        alone = cluster(embeds[found.members(k)])
        assert height == pytest.approx(alone.linkage[-1, 2] if len(alone.linkage) else 0.0)


@pytest.mark.parametrize("estimate", ["silhouette", "calinski_harabasz", "davies_bouldin"])
@pytest.mark.parametrize("linkage", ["ward", "average"])
def test_the_number_of_separate_clusters_is_found(linkage: Linkage, estimate: Any) -> None:
    embeds, truth = blobs([40, 30, 30, 20, 10, 6, 5])
    found = cluster(embeds, linkage=linkage, estimate=estimate, most=20)
    assert same(found.labels, truth)
    assert found.table is not None
    assert found.table["clusters"].tolist() == list(range(2, 21))
    assert found.table["clusters"][found.table["chosen"]].tolist() == [7]
    assert "7 clusters score best of 2 … 20" in found.notes[-1]
    unit, score = normalize(embeds.astype(np.float64)), {
        "silhouette": lambda x, labels: silhouette_score(x, labels, metric=METRIC[linkage]),
        "calinski_harabasz": calinski_harabasz_score,
        "davies_bouldin": davies_bouldin_score,
    }[estimate]  # fmt: skip
    for number in (2, 7, 20):
        expected = score(unit, cluster(embeds, linkage=linkage, number=number).labels)
        assert found.table[estimate][number - 2] == pytest.approx(expected, rel=1e-6)


def test_a_number_at_the_end_of_what_was_tried_is_said() -> None:
    embeds, _ = blobs([20] * 8)
    assert "largest number tried (most=4)" in cluster(embeds, most=4).notes[-1]
    assert "largest number" not in cluster(embeds, most=20).notes[-1]


def test_larger_clusters_come_first_and_equal_ones_by_their_first_picture() -> None:
    embeds, truth = blobs([5, 20, 5, 9])
    labels = cluster(embeds, number=4).labels
    assert np.bincount(labels).tolist() == [20, 9, 5, 5]
    assert same(labels, truth)
    assert labels.tolist().index(2) < labels.tolist().index(3)


@pytest.mark.parametrize("linkage", ["ward", "average"])
class TestManyPictures:
    def test_the_path_for_many_pictures_finds_separate_clusters(self, linkage: Linkage) -> None:
        embeds, truth = blobs([300, 200, 200, 80, 20])
        found = cluster(embeds, linkage=linkage, exact_up_to=100)
        assert same(found.labels, truth)
        assert len(found.linkage) < 100
        assert "small groups" in found.notes[0]

    def test_it_agrees_mostly_where_clusters_overlap(self, linkage: Linkage) -> None:
        embeds, truth = blobs([150] * 6, noise=0.2)
        exact, fast = (cluster(embeds, linkage=linkage, number=6, exact_up_to=up).labels for up in (1000, 300))
        assert adjusted_rand_score(truth, fast) > adjusted_rand_score(truth, exact) - 0.1

    def test_the_tree_above_groups_is_that_of_their_pictures(self, linkage: Linkage) -> None:
        """Of all pairs of groups the closest is merged again and again, each distance computed from the pictures."""
        unit = normalize(drawn(90).astype(np.float64))
        labels = np.concatenate([np.arange(25), np.random.default_rng(0).integers(25, size=65)])
        groups = {k: unit[labels == k] for k in range(25)}
        means, sizes = np.stack([group.mean(0) for group in groups.values()]), np.bincount(labels)
        found = weighted_tree(means, sizes, linkage)
        assert is_valid_linkage(found)
        for row, (left, right, height, _) in enumerate(found):
            apart = {pair: distance(*(groups[k] for k in pair), linkage) for pair in combinations(groups, 2)}
            closest = min(apart, key=lambda pair: apart[pair])
            assert set(closest) == {left, right}
            assert height == pytest.approx(apart[closest])
            groups[25 + row] = np.concatenate([groups.pop(k) for k in closest])
        assert found[-1, 3] == 25

    def test_copies_weigh_as_in_the_exact_tree(self, linkage: Linkage) -> None:
        embeds = normalize(drawn(60).astype(np.float64))
        times = np.random.default_rng(0).integers(1, 6, 60)
        exact = cluster(np.repeat(embeds, times, axis=0), linkage=linkage).linkage
        np.testing.assert_allclose(weighted_tree(embeds, times, linkage)[:, 2], exact[-59:, 2], rtol=1e-6)


def test_equal_arguments_give_equal_clusters() -> None:
    embeds = drawn(400)
    for options in ({}, {"exact_up_to": 100}, {"neighbours": 5}):
        one, other = (cluster(embeds, **options, seed=3) for _ in range(2))
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.linkage, other.linkage)


@pytest.mark.parametrize("neighbours", [None, 3])
@pytest.mark.parametrize("count", range(5))
def test_few_pictures_have_an_answer(count: int, neighbours: int | None) -> None:
    embeds = drawn(count)
    for cut in ({}, {"number": 1}, {"number": 9}, {"distance": 0.1}):
        found = cluster(embeds, neighbours=neighbours, **cut)
        assert len(found.labels) == len(found.leaf_of) == count
        above, heights = found.tree()
        assert len(heights) == found.number
        assert len(above) == max(0, found.number - 1)
        if count < 3 and not cut:
            assert found.number == min(count, 1)
        if cut == {"number": 9}:
            assert found.number == count
            assert "no more" in "".join(found.notes) or not count


def test_equal_pictures_are_one_cluster_and_are_never_torn_apart_by_an_estimate() -> None:
    embeds = np.repeat(drawn(3), 40, axis=0)
    assert cluster(embeds[:40]).number == 1
    for linkage in ("ward", "average"):
        assert same(cluster(embeds, linkage=linkage).labels, np.repeat(np.arange(3), 40))
    found = cluster(embeds, neighbours=5)
    assert same(found.labels, np.repeat(np.arange(3), 40))
    assert "parts, joined where closest" in found.notes[0]


def test_centres_and_the_pictures_nearest_to_them() -> None:
    embeds = drawn()
    found = cluster(embeds, number=5)
    unit = normalize(embeds.astype(np.float64))
    for k, centre in enumerate(found.centres(embeds)):
        rows = np.flatnonzero(found.labels == k)
        np.testing.assert_array_equal(found.members(k), rows)
        mean = unit[rows].mean(0)
        np.testing.assert_allclose(centre, mean / np.linalg.norm(mean), atol=1e-6)
        expected = sorted(rows.tolist(), key=lambda row: -float(unit[row] @ mean))
        assert found.nearest(k, embeds, 4).tolist() == expected[:4]
        assert len(found.nearest(k, embeds, 1000)) == len(rows)


def test_changes_say_what_each_new_cluster_is_made_of() -> None:
    before = np.array([0, 0, 0, 1, 1, 2, -1, -1])
    after = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    table = changes(before, after)
    assert table.values.tolist() == [
        [0, 0, 3, 0.75], [1, 0, 1, 0.25],
        [-1, 1, 1, 1 / 3], [1, 1, 1, 1 / 3], [2, 1, 1, 1 / 3],
        [-1, 2, 1, 1.0],
    ]  # fmt: skip
    assert table.columns.tolist() == ["from", "to", "pictures", "share"]
    rng = np.random.default_rng(0)
    table = changes(rng.integers(-1, 6, 500), after := rng.integers(4, size=500))
    assert table["pictures"].sum() == 500
    assert table.groupby("to")["pictures"].sum().tolist() == np.bincount(after).tolist()
    np.testing.assert_allclose(table.groupby("to")["share"].sum(), 1)
    with pytest.raises(ValueError, match="both are expected"):
        changes(before, after)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"linkage": "single"}, "linkage=single: one of ward, average"),
        ({"estimate": "gap"}, "silhouette, calinski_harabasz, davies_bouldin"),
        ({"number": 3, "distance": 0.5}, "number=3 and distance=0.5"),
        ({"number": 0}, "number=0: a whole number from 1 on"),
        ({"most": 1}, "most=1: a whole number from 2 on"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"distance": 0.0}, "distance=0.0: a number above 0"),
        ({"distance": float("nan")}, "distance=nan"),
    ],
)
def test_an_option_out_of_range_is_explained(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cluster(drawn(10), **options)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    embeds = drawn(10)
    embeds[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        cluster(embeds)
