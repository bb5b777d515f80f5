"""Figures about novelty say what the numbers say, from five pictures to many, and tell eight detectors apart."""

import io
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clipkit.metrics import novelty_metrics
from clipkit.plots import novelty_density, novelty_det, novelty_roc

Curves = Callable[[Mapping[str, tuple[np.ndarray, np.ndarray]]], Figure]


def detectors(count: int, pictures: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    novel = np.arange(pictures) % 2 == 1
    return {f"detector {n}": (rng.normal(size=pictures) + n / 3 * novel, novel) for n in range(count)}


def drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return Image.open(buffer)


def steps(figure: Figure) -> list[tuple[np.ndarray, np.ndarray]]:
    """The outlines of a density's kinds: shares and edges of bins."""
    found = [patch.get_data() for patch in figure.axes[0].patches if hasattr(patch, "get_data")]
    return [(np.asarray(data.values), np.asarray(data.edges)) for data in found[::2]]


@pytest.mark.parametrize("figure", [novelty_roc, novelty_det])
@pytest.mark.parametrize("pictures", [4, 10, 2000])
def test_eight_detectors_are_told_apart(figure: Curves, pictures: int) -> None:
    shown = figure(detectors(8, pictures))
    picture = drawn(shown)
    ax = shown.axes[0]
    lines = [line for line in ax.lines if line.get_label()[0] != "_"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    box, whole = ax.get_legend().get_window_extent(), shown.bbox
    assert whole.x0 <= box.x0 <= box.x1 <= whole.x1 + 1
    assert ax.yaxis.label.get_window_extent().x0 >= 0
    assert ax.get_window_extent().x1 <= box.x0
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [text.get_window_extent() for text in axis.get_ticklabels() if text.get_text()]
        assert all(not one.overlaps(other) for one, other in pairwise(boxes))
    assert picture.size[0] > 300


def test_curves_carry_their_areas_best_first() -> None:
    given = detectors(3, 400)
    shown = [text.get_text() for text in novelty_roc(given).axes[0].get_legend().get_texts()]
    areas = {name: novelty_metrics(*pair)["auroc"] for name, pair in given.items()}
    assert shown == [f"{areas[name]:.3f}  {name}" for name in sorted(areas, key=lambda name: -areas[name])]
    shown = [text.get_text() for text in novelty_det(given).axes[0].get_legend().get_texts()]
    errors = {name: novelty_metrics(*pair)["eer"] for name, pair in given.items()}
    assert shown == [f"{100 * errors[name]:.1f} %  {name}" for name in sorted(errors, key=lambda name: errors[name])]


def test_normal_scores_give_a_straight_line_of_normal_deviates() -> None:
    rng = np.random.default_rng(1)
    novel = np.arange(40_000) % 2 == 1
    ax = novelty_det({"d": (rng.normal(size=40_000) + 2 * novel, novel)}).axes[0]
    (line,) = (line for line in ax.lines if line.get_label().endswith("d"))
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    middle = (np.abs(x) < 1.5) & (np.abs(y) < 1.5)
    np.testing.assert_allclose(x[middle] + y[middle], -2, atol=0.06)
    ticks = dict(zip([text.get_text() for text in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert ticks["5"] == pytest.approx(-1.6449, abs=1e-4)


@pytest.mark.parametrize("figure", [novelty_roc, novelty_det])
def test_equal_scores_and_perfect_ones_are_drawn(figure: Curves) -> None:
    novel = np.arange(5) > 2
    drawn(figure({"nothing": (np.ones(5), novel), "perfect": (np.arange(5.0), novel)}))


@pytest.mark.parametrize(
    ("known", "novel", "threshold"),
    [
        (np.zeros(5), np.zeros(5), 0.0),
        (np.arange(5.0), np.arange(5.0) + 3, 3.5),
        (np.arange(5.0), np.zeros(0), 100.0),
        (np.random.default_rng(0).normal(size=3000), np.random.default_rng(1).standard_cauchy(500) * 1e6, 1.0),
        (np.full(1000, -1.0), np.full(9, -1.0), -1.0),
    ],
)
def test_a_density_adds_up_on_either_side_of_the_threshold(
    known: np.ndarray, novel: np.ndarray, threshold: float
) -> None:
    figure = novelty_density(known, novel, threshold)
    drawn(figure)
    kinds = [values for values in (known, novel) if len(values)]
    for values, (shares, edges) in zip(kinds, steps(figure), strict=True):
        assert shares.sum() == pytest.approx(100)
        assert shares[edges[:-1] >= threshold].sum() == pytest.approx(100 * (values > threshold).mean())
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    above = 100 * (known > threshold).mean()
    assert said[0] == f"known ({len(known):,}): {100 - above:.1f} % taken for known, {above:.1f} % called novel"


def test_far_scores_do_not_squeeze_the_others() -> None:
    known = np.random.default_rng(0).normal(size=1000)
    figure = novelty_density(known, np.append(known[:100] + 3, [1e9, 1e9]), 2.0)
    (shares, _), _ = steps(figure)
    assert (shares > 0).sum() >= 5
    assert "further out are in the outermost bins" in figure.axes[0].get_xlabel()
