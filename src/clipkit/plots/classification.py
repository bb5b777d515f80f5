"""Where a classifier errs: confusion matrix, most-confused pairs with their pictures, and its confidence."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from clipkit.plots.style import COLOURS, GOOD, fonts_for, short, style

__all__ = ["ConfusedPair", "confused_pairs_grid", "confusion_matrix", "reliability_diagram"]

Picture = NDArray[np.uint8]  # [H, W, 3]
ConfusedPair = tuple[str, str, str, Sequence[Picture], Picture | None]

WITH_NUMBERS = 15  # up to this many classes each cell says its share
LABELS = 100  # at most so many names along an axis
INK = "#22303c"


def confusion_matrix(names: Sequence[str], counts: NDArray[Any]) -> Figure:
    """Shares of each class's pictures (rows, each adding up to 1) by the class that they were taken for (columns).

    Classes that are taken for each other stand together. Colours grow with the square root of the share, so that a few
    per cent are seen beside a full diagonal; rows of classes without pictures are grey.

    Args:
        names: of C classes.
        counts: [C, C] numbers of pictures.
    """
    size = len(names)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)  # [C, C], NaN where a class has no picture
    order = _neighbours_together(np.nan_to_num(shares))
    names, shares = [names[index] for index in order], shares[np.ix_(order, order)]
    step = -(-size // LABELS)
    side = float(np.clip(0.5 * size, 1.6, 4.5)) if size <= WITH_NUMBERS else float(np.clip(0.15 * size, 4.5, 10.0))
    with style(), fonts_for(names):
        figure = Figure(figsize=(side + 3.0, side + 2.2))
        figure.set_layout_engine("constrained", h_pad=0.1)
        ax = figure.subplots()
        ax.set_facecolor("#e3e6e9")
        image = ax.imshow(np.ma.masked_invalid(shares), cmap=_white_to_blue(), norm=PowerNorm(0.5, vmin=0, vmax=1))
        if size <= WITH_NUMBERS:
            for row, column in np.argwhere(shares > 0):
                share = shares[row, column]
                ink = "white" if share > 0.35 else INK
                ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
        ticks = list(range(0, size, step))
        small = 8.0 if size <= 30 else 6.5 if size <= 60 else 6.0
        shown = [short(names[index], 32) for index in ticks]
        ax.set_yticks(ticks, shown, fontsize=small)
        ax.set_xticks(ticks, shown, fontsize=small, rotation=90)
        left_out = f" (every {_ordinal(step)} is named)" if step > 1 else ""
        ax.set(xlabel="taken for", ylabel=f"class{left_out}")
        ax.grid(False)
        ax.spines[:].set(visible=True, color="#c9d0d6")
        bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"], fontsize=8)
        bar.outline.set_visible(False)
        unit = " (%)" if size <= WITH_NUMBERS else ""
        ax.set_title(f"Share of each class's pictures{unit}", pad=8)
    return figure


def confused_pairs_grid(pairs: Sequence[ConfusedPair], *, columns: int) -> Figure:
    """A row a pair: its words, pictures of the mistake, and at the end a typical picture of the class named instead.

    Args:
        pairs: (class, taken for, how often, pictures of the mistake, typical picture or None if there is none).
        columns: pictures of the mistake in the widest row.
    """
    row, words, cell, gap, top = 1.18, 2.7, 1.1, 0.5, 0.62  # inches
    width, height = words + columns * cell + gap + cell + 0.1, top + row * len(pairs)
    with style(), fonts_for([name for pair in pairs for name in pair[:2]]):
        figure = Figure(figsize=(width, height))

        def place(left: float, line: int) -> Axes:
            bottom = height - top - row * (line + 1) + 0.06
            return figure.add_axes((left / width, bottom / height, (cell - 0.08) / width, (row - 0.12) / height))

        def say(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, text, **look)

        last = words + columns * cell + gap
        for line, (name, other, often, mistakes, typical) in enumerate(pairs):
            middle = top + row * (line + 0.5)
            say(0.12, middle - 0.06, textwrap.fill(short(name, 56), 30), va="bottom", weight="bold", color=INK)
            say(0.12, middle, f"→ {textwrap.fill(short(other, 56), 30)}", va="top", color=COLOURS[4], weight="bold")
            say(words - 0.12, middle, textwrap.fill(often, 12), ha="right", va="center", fontsize=8, color="#5b6470")
            for column, picture in enumerate(mistakes):
                _show(place(words + column * cell, line), picture, COLOURS[4])
            if typical is not None:
                _show(place(last, line), typical, GOOD)
            else:
                say(last + cell / 2, middle, "no picture\nof it here", ha="center", va="center", fontsize=8)
        say(0.12, 0.4, "class → taken for", color="#5b6470")
        say(words, 0.4, "pictures of the class that were taken for the other", color="#5b6470")
        say(last + cell - 0.08, 0.4, "the other", ha="right", color="#5b6470")
    return figure


def reliability_diagram(
    pictures: NDArray[Any], accuracy: NDArray[Any], confidence: NDArray[Any], *, error: float
) -> Figure:
    """Accuracy in bins of equal width of confidence, and below how many pictures each bin has.

    Args:
        pictures, accuracy, confidence: [bins]; the latter are means within a bin.
        error: the expected calibration error.
    """
    bins = len(pictures)
    left, used = np.arange(bins) / bins, pictures > 0
    with style():
        figure = Figure(figsize=(4.6, 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        above.bar(left[used], accuracy[used], width=1 / bins, align="edge", color=COLOURS[0], edgecolor="white",
                  label="accuracy")  # fmt: skip
        above.plot([0, 1], [0, 1], color="#9aa3ad", linestyle=":", linewidth=1.2, label="as sure as right")
        above.plot(confidence[used], accuracy[used], "o", markersize=3.5, color=INK)
        above.vlines(confidence[used], accuracy[used], confidence[used], color=COLOURS[1], linewidth=1.6,
                     label="gap: over- or underconfident")  # fmt: skip
        above.set(ylim=(0, 1), ylabel="accuracy")
        above.legend(fontsize=8, loc="upper left")
        above.set_title(f"Expected calibration error {error:.3f}", pad=8)
        below.bar(left, pictures, width=1 / bins, align="edge", color="#b9c3cd", edgecolor="white")
        below.set(xlim=(0, 1), xlabel="confidence (largest probability)", ylabel="pictures")
        for ax in (above, below):
            ax.grid(False, axis="x")
            ax.set_axisbelow(True)
    return figure


def _white_to_blue() -> Colormap:
    """White only at nothing at all: a single mistake is seen among many classes."""
    strong = matplotlib.colormaps["YlGnBu"](np.linspace(0.15, 1, 64))
    return ListedColormap([(1, 1, 1, 1), *strong])


def _neighbours_together(shares: NDArray[Any]) -> NDArray[np.int64]:
    """An order of the classes in which those that are taken for each other are neighbours."""
    size = len(shares)
    if size < 3:
        return np.arange(size)
    mutual = shares + shares.T
    np.fill_diagonal(mutual, 0)
    if not mutual.any():
        return np.arange(size)
    apart = 2 - mutual
    condensed = apart[np.triu_indices(size, 1)]
    tree = linkage(condensed, "average", optimal_ordering=size <= 300)  # its time grows with the cube
    return np.asarray(leaves_list(tree), np.int64)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _show(ax: Axes, picture: Picture, colour: str) -> None:
    ax.imshow(picture)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color=colour, linewidth=1.6)
