"""The dendrogram is legible from 1 cluster to hundreds, and says what the tree says."""

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from clipkit.plots import cluster_count_curve, dendrogram


def tree(clusters: int) -> np.ndarray:
    return linkage(np.random.default_rng(0).normal(size=(clusters, 4))) if clusters > 1 else np.empty((0, 4))


def drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return Image.open(buffer)


def rows(figure: Figure) -> list[tuple[str, str]]:
    """Name and size of each row, from top to bottom."""
    said = [text.get_text() for text in figure.axes[1].texts]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize("clusters", [1, 2, 12, 40, 300])
def test_any_number_of_clusters_fits_a_page_and_its_words_touch_nothing(clusters: int) -> None:
    shape = np.full((6, 4, 3), 90, np.uint8)
    figure = dendrogram(
        tree(clusters), cut=0.1, counts=list(range(1, clusters + 1)), names=["a rather long name $of_1 it"] * clusters,
        pictures=[[shape] * 3] * clusters,
    )  # fmt: skip
    picture = drawn(figure)
    assert picture.size[0] < 60 * 12
    assert picture.size[1] < 60 * 23
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert all(below.y1 <= above.y0 + 1 for above, below in pairwise(boxes))
    left = min(image.get_window_extent().x0 for image in figure.axes[1].images)
    assert max(box.x1 for box in boxes) <= left + 1
    assert len(rows(figure)) == min(clusters, 40)


def test_every_cluster_has_one_row_with_its_size_and_pictures() -> None:
    pictures = [[np.full((5, 5, 3), k, np.uint8)] * (k + 1) for k in range(6)]
    figure = dendrogram(tree(6), cut=1, counts=[9, 1, 7, 5, 3, 1000], names=list("abcdef"), pictures=pictures)
    sizes = {"a": "9", "b": "1", "c": "7", "d": "5", "e": "3", "f": "1,000"}
    assert {name: said.split()[0] for name, said in rows(figure)} == sizes
    assert dict(rows(figure))["b"] == "1 picture"
    shown = {}
    for image in figure.axes[1].images:
        place = round(sum(image.get_extent()[2:]) / 2)
        shown.setdefault(place, []).append(int(image.get_array().max()))
    for place, (name, _) in enumerate(rows(figure)):
        assert shown[place] == [list("abcdef").index(name)] * (list("abcdef").index(name) + 1)


def test_pictures_keep_their_proportions() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    figure = dendrogram(tree(2), cut=1, counts=[1, 1], pictures=[[wide], [wide]])
    drawn(figure)
    box = figure.axes[1].images[0].get_window_extent()
    assert box.width / box.height == pytest.approx(3, rel=0.02)


def test_the_lines_join_rows_at_the_heights_of_the_tree() -> None:
    """The height at which two rows first meet along the lines is the tree's (cophenetic) distance."""
    merges = tree(9)
    figure = dendrogram(merges, cut=1, counts=[1] * 9, names=[str(k) for k in range(9)])
    order = [int(name) for name, _ in rows(figure)]
    lines = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) == 4]
    met, parts = np.zeros((9, 9)), {place: [k] for place, k in enumerate(order)}
    for line in sorted(lines, key=lambda line: line[1, 0]):
        one, other = parts.pop(line[0, 1]), parts.pop(line[3, 1])
        for k in one:
            met[k, other] = met[other, k] = line[1, 0]
        parts[(line[0, 1] + line[3, 1]) / 2] = one + other
    np.testing.assert_allclose(met, squareform(cophenet(merges)))


def test_more_clusters_than_rows_are_put_together_from_the_bottom() -> None:
    merges = tree(10)
    figure = dendrogram(merges, cut=0.1, counts=list(range(1, 11)), most=4)
    assert len(rows(figure)) == 4
    assert sum(int(said.split()[0]) for _, said in rows(figure)) == 55
    assert sum(int(said.split()[-2]) if "clusters" in said else 1 for _, said in rows(figure)) == 10
    heights = sorted(line.get_xydata()[1, 0] for line in figure.axes[0].lines if len(line.get_xydata()) == 4)
    np.testing.assert_allclose(heights, merges[-3:, 2])
    assert any("in 4 rows" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize(("counts", "merges"), [([], 0), ([1, 2], 2)])
def test_tree_and_clusters_have_to_match(counts: list[int], merges: int) -> None:
    with pytest.raises(ValueError, match="one merge less"):
        dendrogram(np.zeros((merges, 4)), cut=1, counts=counts)


@pytest.mark.parametrize("chosen", [0, 5, 18])
@pytest.mark.parametrize("name", ["silhouette", "davies_bouldin"])
def test_the_chosen_number_is_marked_within_the_figure(name: str, chosen: int) -> None:
    scores = np.linspace(0.1, 0.2, 19)
    table = pd.DataFrame({"clusters": np.arange(2, 21), name: scores, "chosen": np.arange(19) == chosen})
    figure = cluster_count_curve(table)
    picture = drawn(figure)
    (said,) = figure.axes[0].texts
    assert said.get_text() == f"{chosen + 2} clusters, {scores[chosen]:.3g}"
    box = said.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert picture.size[0] > 200
    assert ("smaller" in figure.axes[0].get_title(loc="left")) == (name == "davies_bouldin")
