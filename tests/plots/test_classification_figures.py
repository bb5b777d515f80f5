"""Figures about classification are legible from 2 to 200 classes, and say what the numbers say."""

import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clipkit.plots import confused_pairs_grid, confusion_matrix, reliability_diagram, trade_off


def counts(classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (classes, classes)) * (rng.random((classes, classes)) < 4 / classes) + 9 * np.eye(
        classes, dtype=np.int64
    )


def drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return Image.open(buffer)


def labels(figure: Figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize("classes", [2, 5, 48, 196])
def test_a_confusion_matrix_of_any_size_fits_a_page_and_its_names_do_not_touch(classes: int) -> None:
    figure = confusion_matrix([f"class {index}" for index in range(classes)], counts(classes))
    picture = drawn(figure)
    assert max(picture.size) < 60 * 15
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert all(below[1] <= above[0] + 1.5 for below, above in pairwise(tops))
    assert len(labels(figure)) >= min(classes, 48)


def test_each_row_shows_the_shares_of_the_class_that_it_names() -> None:
    numbers = np.array([[6, 2, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [5, 0, 0, 5]])
    figure = confusion_matrix(names := ["a", "b", "none", "d"], numbers)
    order = [names.index(name) for name in labels(figure)]
    shown = np.ma.masked_invalid(figure.axes[0].images[0].get_array())
    assert bool(shown.mask[order.index(2)].all())  # no picture: grey, not zero
    for place, index in enumerate(order):
        if index != 2:
            np.testing.assert_allclose(shown[place], numbers[index, order] / numbers[index].sum())
    said = {text.get_text() for text in figure.axes[0].texts}
    assert said == {"75", "25", "100", "50"}


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    numbers = 9 * np.eye(30, dtype=np.int64)
    numbers[3, 27] = numbers[27, 3] = 8
    order = labels(confusion_matrix([str(index) for index in range(30)], numbers))
    assert abs(order.index("3") - order.index("27")) == 1


def test_pairs_without_a_typical_picture_and_with_long_names_are_drawn() -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    pairs = [
        ("a very long class name " * 3, "other " * 20, "5 of 9 (56%)", [grey] * 5, grey),
        ("é", "b", "1", [grey], None),
    ]
    figure = confused_pairs_grid(pairs, columns=5)
    assert len(figure.axes) == 7  # six pictures and one
    assert drawn(figure).size[0] > 400
    assert any("no picture" in text.get_text() for text in figure.texts)


def test_the_reliability_diagram_leaves_empty_bins_out() -> None:
    pictures, accuracy, confidence = np.array([0, 3, 5]), np.array([0, 0.5, 0.8]), np.array([0, 0.6, 0.9])
    figure = reliability_diagram(pictures, accuracy, confidence, error=0.1)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 0.8]
    assert "0.100" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("kept", [[0.6, 0.5, 0.2], None])
def test_the_curve_between_start_and_run_names_both_ends(kept: list[float] | None) -> None:
    figure = trade_off([0.0, 0.5, 1.0], [0.3, 0.5, 0.6], kept, names=("cars", "emoji"))
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said[0].startswith("start")
    assert said[-1].startswith("run")
    assert figure.axes[0].get_ylabel().endswith("cars" if kept is None else "emoji")
