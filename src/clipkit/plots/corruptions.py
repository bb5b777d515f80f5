"""Accuracy by corruption and severity, and what the corruptions look like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clipkit.plots.style import style

__all__ = ["corrupted_pictures", "corruption_heatmap"]

Picture = NDArray[np.uint8]  # [H, W, 3]
INK = "#22303c"


def corruption_heatmap(
    kinds: Sequence[str], severities: Sequence[int], accuracy: NDArray[Any], *, clean: float
) -> Figure:
    """Each cell says an accuracy in per cent; the column on the left is the mean of its row.

    Args:
        kinds, severities: of K rows and S columns.
        accuracy: [K, S], 0–1.
        clean: without corruption, 0–1; the colours end there.
    """
    whole = np.concatenate([accuracy.mean(1, keepdims=True), accuracy], axis=1)
    top = max(clean, float(whole.max()), 1e-9)
    with style():
        figure = Figure(figsize=(2.6 + 0.62 * whole.shape[1], 1.3 + 0.27 * len(kinds)), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(whole, cmap="YlGnBu", vmin=0, vmax=top, aspect="auto")
        for row, column in np.ndindex(whole.shape):
            value = whole[row, column]
            ink = "white" if value > 0.55 * top else INK
            weight = "bold" if column == 0 else "normal"
            ax.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8, color=ink, weight=weight)
        ax.axvline(0.5, color="white", linewidth=4)
        ax.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        ax.set_xticks(range(whole.shape[1]), ["mean", *map(str, severities)])
        ax.set_xlabel("severity")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        bar.outline.set_visible(False)
        ax.set_title(f"Accuracy (%); {100 * clean:.1f} without corruption, {100 * accuracy.mean():.1f} with", pad=8)
    return figure


def corrupted_pictures(
    kinds: Sequence[str], severities: Sequence[int], rows: Sequence[Sequence[Picture]], *, clean: Picture
) -> Figure:
    """One picture under each corruption; a second table stands beside the first where there are many kinds.

    Args:
        kinds, severities: of K rows and S columns.
        rows: K rows of S pictures.
        clean: the picture itself.
    """
    side_by_side = 2 if len(kinds) > 6 else 1
    deep = -(-len(kinds) // side_by_side)
    cell, words, top = 0.78, 1.25, 0.98  # inches
    wide = words + cell * len(severities) + 0.2
    width, height = max(4.2, wide * side_by_side), top + cell * deep + 0.08
    with style():
        figure = Figure(figsize=(width, height))

        def show(picture: Picture, left: float, down: float, size: float) -> None:
            ax = figure.add_axes((left / width, 1 - (down + size) / height, size / width, size / height))
            ax.imshow(picture)
            ax.set_axis_off()

        show(clean, words, 0.06, cell - 0.06)
        figure.text((words - 0.1) / width, 1 - 0.44 / height, "the picture", ha="right", va="center", weight="bold")
        for number, (kind, pictures) in enumerate(zip(kinds, rows, strict=True)):
            column, row = divmod(number, deep)
            left, down = column * wide + words, top + row * cell
            figure.text((left - 0.1) / width, 1 - (down + cell / 2 - 0.03) / height, kind.replace("_", "\n"),
                        ha="right", va="center", color=INK)  # fmt: skip
            for place, (severity, picture) in enumerate(zip(severities, pictures, strict=True)):
                show(picture, left + place * cell, down, cell - 0.06)
                if row == 0:
                    figure.text((left + (place + 0.46) * cell) / width, 1 - (top - 0.06) / height, str(severity),
                                ha="center", fontsize=8, color="#5b6470")  # fmt: skip
    return figure
