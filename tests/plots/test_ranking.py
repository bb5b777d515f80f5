"""The grid of a search: every picture in its place, texts as they are."""

import numpy as np
import pytest

from clipkit.plots import ranked_pictures
from clipkit.plots.png import png


def test_each_query_has_its_pictures_and_captions_in_order() -> None:
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in range(7)]
    queries = ["a dog for $5 or $6", "un chat"]
    captions = [[f"{rank} · $x_{rank}$" for rank in range(7)], ["one"]]
    figure = ranked_pictures(queries, [pictures, [None]], captions)
    png(figure)  # a $ that were taken for mathematics would fail here
    first, second = figure.subfigs
    assert [block.get_suptitle() for block in (first, second)] == queries
    shown = [ax for ax in first.axes if ax.images]
    assert shown[3].images[0].get_array()[2, 2].tolist() == [3, 3, 3]  # the middle
    assert [int(ax.images[0].get_array().min()) for ax in shown] == list(range(7))
    assert [ax.get_xlabel() for ax in shown] == captions[0]
    assert [ax.get_xlabel() for ax in second.axes if ax.get_xlabel()] == ["one"]
    assert [text.get_text() for ax in second.axes for text in ax.texts] == ["cannot be read"]


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_any_number_of_pictures_is_drawn(count: int) -> None:
    picture = np.zeros((3, 3, 3), np.uint8)
    figure = ranked_pictures(["x"], [[picture] * count], [["y"] * count])
    assert sum(bool(ax.images) for ax in figure.subfigs[0].axes) == count
    assert png(figure).startswith(b"\x89PNG")
