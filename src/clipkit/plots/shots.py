"""Accuracy against training pictures a class, one line an approach."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from clipkit.plots.style import COLOURS, style

__all__ = ["ShotLine", "accuracy_by_shots"]

MARKERS = ("o", "s", "^")  # after six colours the marker and the line change
LINES = ("-", "--", ":")
DODGE = 0.04  # of a doubling of the shots, between neighbours: error bars stand side by side
INK = "#5b6470"


class ShotLine(NamedTuple):
    """One approach: means and standard deviations (NaN where there is none) at these shots; None means all pictures."""

    shots: Sequence[int | None]
    means: Sequence[float]
    stds: Sequence[float]


def accuracy_by_shots(
    panels: Mapping[str, Mapping[str, ShotLine]], *, ylabel: str, zero_shot: Mapping[str, float] | None = None
) -> Figure:
    """One panel per entry, side by side; the shots' axis is logarithmic, bars are one standard deviation.

    Args:
        panels: title -> approach -> its line; every panel has the same approaches.
        ylabel: what is measured, 0–1.
        zero_shot: title -> accuracy without training, drawn as a level line.
    """
    zero_shot = zero_shot or {}
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    every = {shots for lines in panels.values() for line in lines.values() for shots in line.shots}
    place = _places(every)
    with style():
        figure = Figure(figsize=(1.9 + 3.9 * len(panels), 3.9), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            if title in zero_shot:
                ax.axhline(zero_shot[title], color=INK, linewidth=1.3, linestyle=(0, (5, 3)), label="zero-shot")
            for name, line in lines.items():
                number = names.index(name)
                turn = number // len(COLOURS)
                shift = DODGE * (number - (len(names) - 1) / 2) * min(1, 8 / len(names))
                ax.errorbar(
                    [place[shots] + shift for shots in line.shots], line.means,
                    yerr=[0 if math.isnan(std) else std for std in line.stds], label=name,
                    color=COLOURS[number % len(COLOURS)], linestyle=LINES[turn % len(LINES)],
                    marker=MARKERS[turn % len(MARKERS)], markersize=4, linewidth=1.6, elinewidth=0.9, capsize=0,
                )  # fmt: skip
            ax.set_title(title, pad=8)
            ax.set_xlabel("training pictures a class")
            ax.set_xticks(list(place.values()), [_label(shots) for shots in place])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.grid(False, axis="x")
        axes[0].set_ylabel(ylabel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


def _places(every: set[int | None]) -> dict[int | None, float]:
    """Where each number of shots stands on the axis; all pictures one step to the right of the largest."""
    numbers = sorted(shots for shots in every if shots is not None)
    place: dict[int | None, float] = {shots: math.log2(shots) for shots in numbers}
    if None in every:
        place[None] = max(place.values(), default=-1.0) + 1
    return place


def _label(shots: int | None) -> str:
    return "all" if shots is None else str(shots)
