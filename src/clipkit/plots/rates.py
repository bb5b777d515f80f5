"""Rates of several groups side by side, with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clipkit.plots.style import COLOURS, fonts_for, short, style

__all__ = ["rates_by_group"]

MARKERS = ("o", "s", "^", "D", "v")  # after six colours the marker changes


def rates_by_group(
    groups: Sequence[str],
    labels: Sequence[str],
    totals: Sequence[int] | NDArray[Any],
    rates: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    *,
    p_values: Sequence[float],
) -> Figure:
    """A band a label, in it a dot a group with its 95 % interval; on the right how likely that is by chance.

    Args:
        groups, labels: of G and K.
        totals: [G] pictures.
        rates, low, high: [G, K], 0–1.
        p_values: K, corrected for their number.
    """
    step = 0.24  # inches a group
    band = step * len(groups) + 0.22
    with style(), fonts_for([*groups, *labels]):
        figure = Figure(figsize=(7.2, 1.25 + band * len(labels)), layout="constrained")
        ax = figure.subplots()
        centres = -np.arange(len(labels), dtype=float) * band
        for number, group in enumerate(groups):
            y = centres + step * ((len(groups) - 1) / 2 - number)
            ax.errorbar(
                rates[number], y, xerr=[rates[number] - low[number], high[number] - rates[number]], linestyle="none",
                marker=MARKERS[number // len(COLOURS) % len(MARKERS)], markersize=5.5,
                color=COLOURS[number % len(COLOURS)], elinewidth=1.6, capsize=3,
                label=f"{short(group, 28)} ({int(totals[number]):,})",
            )  # fmt: skip
        for number, centre in enumerate(centres):
            if number % 2 == 0:
                ax.axhspan(centre - band / 2, centre + band / 2, color="#f4f6f8", zorder=0, linewidth=0)
            weight = "bold" if p_values[number] < 0.05 else "normal"
            ax.annotate(_chance(p_values[number]), (1.015, centre), xycoords=("axes fraction", "data"), va="center",
                        fontsize=8, color="#22303c", weight=weight)  # fmt: skip
        ax.set_yticks(centres, [short(label, 36) for label in labels])
        ax.set_ylim(centres[-1] - band / 2, centres[0] + band / 2)
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.set_xlabel("share of the group's pictures that get the label, with 95 % intervals")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8, title="group (pictures)", title_fontsize=8,
                      alignment="left")  # fmt: skip
    return figure


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
