"""Clustering scores against scikit-learn and against every possible assignment of clusters to classes."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.preprocessing import normalize

from clipkit.metrics import clustering_metrics, silhouettes


def best_by_trying(truth: np.ndarray, clusters: np.ndarray) -> float:
    """The largest share of pictures whose cluster stands for their class, over all ways to pair them one to one."""
    size = max(truth.max(), clusters.max()) + 1
    return max(float((np.array(way)[clusters] == truth).mean()) for way in permutations(range(size)))


@pytest.mark.parametrize("classes", [1, 3, 6])
@pytest.mark.parametrize("clusters", [1, 4, 6])
def test_scores_agree_with_scikit_learn_and_with_trying_every_assignment(classes: int, clusters: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth, found = rng.integers(classes, size=40), rng.integers(clusters, size=40)
        metrics = clustering_metrics(truth, found)
        assert metrics == {
            "ari": pytest.approx(adjusted_rand_score(truth, found)),
            "nmi": pytest.approx(normalized_mutual_info_score(truth, found)),
            "accuracy_all": pytest.approx(best_by_trying(truth, found)),
        }


def test_names_of_classes_and_clusters_make_no_difference() -> None:
    rng = np.random.default_rng(0)
    truth, found, known = rng.integers(5, size=60), rng.integers(7, size=60), rng.random(60) < 0.5
    renamed = clustering_metrics(90 - 7 * truth, 3 + 11 * found, known=known)
    assert renamed == pytest.approx(clustering_metrics(truth, found, known=known))


def test_known_and_novel_classes_are_read_off_one_assignment() -> None:
    """Class 0 is known and lies in two clusters, of which the larger counts; class 1 shares the smaller with it."""
    truth = np.array([0] * 10 + [1] * 3)
    clusters = np.array([0] * 6 + [1] * 4 + [1] * 3)
    metrics = clustering_metrics(truth, clusters, known=truth == 0)
    assert metrics["accuracy_all"] == pytest.approx(9 / 13)
    assert metrics["accuracy_known"] == pytest.approx(6 / 10)
    assert metrics["accuracy_novel"] == pytest.approx(1.0)
    swapped = clustering_metrics(truth, np.where(np.arange(13) < 6, 0, 1), known=truth == 1)
    assert swapped["accuracy_known"] == pytest.approx(1.0)
    # cluster 1 would be novel class 1's alone, were it assigned among the novel pictures only: not so, if 0 needs it
    crowded = clustering_metrics(np.array([0] * 5 + [1] * 2), np.array([1] * 7), known=np.arange(7) < 5)
    assert (crowded["accuracy_known"], crowded["accuracy_novel"]) == (1.0, 0.0)


@pytest.mark.parametrize(("known", "missing"), [(True, "accuracy_novel"), (False, "accuracy_known")])
def test_a_part_without_pictures_has_no_accuracy(known: bool, missing: str) -> None:
    metrics = clustering_metrics(np.arange(4), np.arange(4), known=np.full(4, known))
    assert missing not in metrics
    assert len(metrics) == 4


@pytest.mark.parametrize(
    ("truth", "clusters"), [([0, -1], [0, 1]), ([0, 1], [-1, 1]), ([], []), ([0, 1], [0]), ([[0], [1]], [[0], [1]])]
)
def test_minus_one_is_never_a_label_and_shapes_have_to_match(truth: list[int], clusters: list[int]) -> None:
    with pytest.raises(ValueError, match=r"leave such pictures out|are expected"):
        clustering_metrics(np.array(truth), np.array(clusters))


@pytest.mark.parametrize("cosine", [False, True])
def test_silhouettes_of_nested_groupings_agree_with_scikit_learn(cosine: bool) -> None:
    rng = np.random.default_rng(0)
    unit = normalize(rng.normal(size=(90, 6)))
    unit[10:14] = unit[10]  # equal pictures
    finest = np.concatenate([np.arange(8), rng.integers(7, size=82)])  # the last has one picture
    coarser = np.array([np.arange(8), [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 0, 0, 0, 1]])
    metric = "cosine" if cosine else "euclidean"
    expected = [silhouette_score(unit, row[finest], metric=metric) for row in coarser]
    np.testing.assert_allclose(silhouettes(unit, finest, coarser, cosine=cosine), expected, atol=1e-7)
