"""What a search found: for each query its pictures in order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clipkit.plots.style import fonts_for, short, style

__all__ = ["ranked_pictures"]

Picture = NDArray[np.uint8]  # [H, W, 3]
COLUMNS = 5
BACKGROUND = (243, 245, 247)


def ranked_pictures(
    queries: Sequence[str], results: Sequence[Sequence[Picture | None]], captions: Sequence[Sequence[str]]
) -> Figure:
    """One block a query, its pictures from left to right and from top to bottom.

    Args:
        queries: Q headlines.
        results: Q rows of pictures, best first; None where one cannot be shown.
        captions: what stands below each.
    """
    heights = [0.4 + 2.0 * -(-max(1, len(row)) // COLUMNS) for row in results]
    with style(), fonts_for([*queries, *(text for row in captions for text in row)]):
        figure = Figure(figsize=(1.7 * COLUMNS, sum(heights)), layout="constrained")
        blocks: Any = figure.subfigures(len(queries), 1, squeeze=False, height_ratios=heights)[:, 0]
        for block, query, pictures, below in zip(blocks, queries, results, captions, strict=True):
            title = block.suptitle(short(query, 90), x=0.01, ha="left", fontsize=11, weight="bold")
            title.set_parse_math(False)  # a $ is a $
            axes = block.subplots(-(-max(1, len(pictures)) // COLUMNS), COLUMNS, squeeze=False).flat
            for place, ax in enumerate(axes):
                if place >= len(pictures):
                    ax.set_axis_off()
                    continue
                ax.imshow(_square(pictures[place]))
                ax.set_xticks([])
                ax.set_yticks([])
                ax.grid(False)
                ax.spines[:].set_visible(False)
                if pictures[place] is None:
                    ax.text(
                        0.5, 0.5, "cannot be read", ha="center", va="center", transform=ax.transAxes, color="#5b6470"
                    )
                ax.set_xlabel(below[place], fontsize=7.5, parse_math=False)
    return figure


def _square(picture: Picture | None) -> Picture:
    """A picture in the middle of a light square, so that rows have one height; the square alone without one."""
    if picture is None:
        return np.full((8, 8, 3), BACKGROUND, np.uint8)
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), BACKGROUND, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
