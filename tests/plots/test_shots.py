"""What the plot of accuracy against shots shows."""

import math

import pytest

from clipkit.plots import ShotLine, accuracy_by_shots


def test_lines_stand_at_their_shots_with_zero_shot_across() -> None:
    line = ShotLine([1, 4, None], [0.4, 0.5, 0.7], [0.1, math.nan, 0.02])
    figure = accuracy_by_shots({"seen": {"a": line}, "unseen": {"a": line}}, ylabel="top-1", zero_shot={"unseen": 0.45})
    seen, unseen = figure.axes
    assert [text.get_text() for text in seen.get_xticklabels()] == ["1", "4", "all"]
    assert list(seen.get_xticks()) == [0, 2, 3]  # doublings; all pictures one step beyond
    (drawn,) = (container.lines[0] for container in seen.containers)
    assert list(drawn.get_xdata()) == [0, 2, 3]
    assert list(drawn.get_ydata()) == [0.4, 0.5, 0.7]
    (bars,) = seen.containers[0].lines[2]
    heights = [top - bottom for (_, bottom), (_, top) in bars.get_segments()]
    assert heights == pytest.approx([0.2, 0.0, 0.04])
    level = [entry for entry in unseen.lines if entry.get_label() == "zero-shot"]
    assert [list(entry.get_ydata()) for entry in level] == [[0.45, 0.45]]
    assert not [entry for entry in seen.lines if entry.get_label() == "zero-shot"]


def test_every_approach_is_told_apart() -> None:
    lines = {f"approach {number}": ShotLine([1, 2], [0.1 * number] * 2, [0.0, 0.0]) for number in range(11)}
    figure = accuracy_by_shots({"test": lines}, ylabel="top-1", zero_shot={"test": 0.3})
    looks = {
        (c.lines[0].get_color(), c.lines[0].get_linestyle(), c.lines[0].get_marker()) for c in figure.axes[0].containers
    }
    assert len(looks) == 11
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zero-shot", *lines]
