"""Figures with pictures in them: similarity heat map, retrieval grid; and scores by class."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from clipkit.plots.style import GOOD, short, style

__all__ = ["class_bars", "retrieval_grid", "similarity_heatmap"]

Picture = NDArray[np.uint8]  # [H, W, 3]


def similarity_heatmap(pictures: Sequence[Picture], captions: Sequence[str], similarity: NDArray[Any]) -> Figure:
    """Cosines of pictures (columns, shown on top) and captions (rows).

    Args:
        pictures: N pictures; captions: M texts.
        similarity: [M, N].
    """
    count = len(pictures)
    with style():
        figure = Figure(figsize=(3.4 + 0.75 * count, 1.6 + 0.55 * len(captions)), layout="constrained")
        ax = figure.subplots()
        ax.grid(False)
        ax.imshow(similarity, cmap="YlGnBu", aspect="auto")
        dark = (similarity.max() + similarity.min()) / 2
        for row, column in np.ndindex(similarity.shape):
            value = similarity[row, column]
            weight = "bold" if value == similarity[:, column].max() else "normal"
            ink = "white" if value > dark else "#22303c"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink, weight=weight)
        ax.set_yticks(range(len(captions)), [short(caption, 34) for caption in captions])
        ax.set_xticks([])
        ax.spines[:].set_visible(False)
        for column, picture in enumerate(pictures):
            box = OffsetImage(picture, zoom=36 / max(picture.shape[:2]))
            ax.add_artist(
                AnnotationBbox(box, (column, -0.5), box_alignment=(0.5, -0.12), frameon=False, annotation_clip=False)
            )
        ax.set_title("Cosine similarity (bold: each picture's best caption)", pad=46)
    return figure


def retrieval_grid(
    queries: Sequence[str], results: Sequence[Sequence[Picture]], right: Sequence[Sequence[bool]], *, title: str
) -> Figure:
    """One row per query, its best pictures from left to right; right answers have a green frame.

    Args:
        queries: Q texts.
        results: Q rows of K pictures, best first.
        right: Q rows of K flags.
    """
    width = max(len(row) for row in results)
    with style():
        figure = Figure(figsize=(2.6 + 0.95 * width, 0.5 + 1.0 * len(queries)), layout="constrained")
        axes = figure.subplots(len(queries), width + 1, squeeze=False, width_ratios=[2.4, *[1.0] * width])
        for row, query in enumerate(queries):
            _blank(axes[row, 0])
            axes[row, 0].text(
                1, 0.5, textwrap.fill(short(query, 60), 24), ha="right", va="center", fontsize=9, color="#22303c"
            )
            for column in range(width):
                ax = axes[row, column + 1]
                if column >= len(results[row]):
                    _blank(ax)
                    continue
                ax.imshow(results[row][column])
                ax.grid(False)
                ax.set_xticks([])
                ax.set_yticks([])
                hit = right[row][column]
                ax.spines[:].set(visible=True, color=GOOD if hit else "#dfe3e7", linewidth=3 if hit else 1)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold")
    return figure


def class_bars(names: Sequence[str], scores: Sequence[float], *, title: str) -> Figure:
    """A bar per class, best on top; scores in 0–1."""
    order = np.argsort(scores)
    with style():
        figure = Figure(figsize=(6.4, 1.0 + 0.19 * len(names)), layout="constrained")
        ax = figure.subplots()
        ax.barh(range(len(names)), [scores[index] for index in order], color="#2463a8", height=0.7)
        ax.set_yticks(range(len(names)), [short(names[index], 30) for index in order], fontsize=8)
        ax.set_xlim(0, 1)
        ax.grid(False, axis="y")
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.set_title(title, pad=8)
    return figure


def _blank(ax: Axes) -> None:
    ax.grid(False)
    ax.set_axis_off()
