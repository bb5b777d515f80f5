"""Several models on the same measures, each with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from clipkit.plots.style import COLOURS, fonts_for, short, style

__all__ = ["ComparedMeasure", "compared_models"]

ACROSS = 3


@dataclass(frozen=True)
class ComparedMeasure:
    """One measure of M models: `values` [M] in 0–1 and the `ends` [M] of their intervals."""

    title: str
    models: Sequence[str]
    values: Sequence[float]
    ends: Sequence[tuple[float, float]]


def compared_models(measures: Sequence[ComparedMeasure]) -> Figure:
    """A panel for each measure, a row for each model, in the same order everywhere."""
    names = list(dict.fromkeys(name for measure in measures for name in measure.models))
    columns = min(ACROSS, len(measures))
    rows = -(-len(measures) // columns)
    with style(), fonts_for(names):
        figure = Figure(figsize=(1.6 + 2.9 * columns, rows * (0.9 + 0.26 * len(names))), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax, measure in zip(panels.flat, measures, strict=False):
            places = np.array([names.index(name) for name in measure.models])
            values, ends = np.array(measure.values), np.array(measure.ends)  # [M], [M, 2]
            ax.hlines(places, ends[:, 0], ends[:, 1], color=COLOURS[0], linewidth=2.2, alpha=0.45)
            ax.plot(values, places, "o", color=COLOURS[0], markersize=5)
            ax.set_title(measure.title, fontsize=8.5)
            ax.set_xlim(0, max(0.05, 1.08 * ends.max()) if ends.max() < 0.9 else 1.02)
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.set_yticks(range(len(names)), [short(name, 26) for name in names], fontsize=8)
        for ax in list(panels.flat)[len(measures) :]:
            ax.set_axis_off()
    return figure
