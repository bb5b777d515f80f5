"""How a data set is distributed: pictures by class, lengths of captions, sizes of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from clipkit.plots.style import COLOURS, fonts_for, short, style

__all__ = ["class_distribution", "length_histograms", "picture_sizes"]

BARS = 60  # more classes than this are drawn as a curve
INK = "#3a424a"


def class_distribution(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Figure:
    """Pictures by class, most on top: a bar a class, or for more than 60 classes a curve over their ranks.

    Args:
        names: of C classes.
        counts: split -> C numbers of pictures.
    """
    table = np.array([list(numbers) for numbers in counts.values()], np.int64)  # [splits, C]
    order = np.argsort(-table.sum(0), kind="stable")
    names = [names[index] for index in order]
    with style(), fonts_for(names):
        if len(names) <= BARS:
            return _bars(names, list(counts), table[:, order])
        return _ranks(names, list(counts), table)


def length_histograms(panels: Mapping[str, NDArray[Any]], *, ylabel: str) -> Figure:
    """A histogram of whole numbers per entry, side by side; the longest hundredth is cut off where it is far away.

    Args:
        panels: label of the x axis -> the numbers.
        ylabel: what is counted.
    """
    with style():
        figure = Figure(figsize=(4.6 * len(panels), 2.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (label, lengths) in zip(axes, panels.items(), strict=True):
            low, most, high = int(lengths.min()), int(np.quantile(lengths, 0.99)), int(lengths.max())
            shown = high if high <= 2 * most else most
            width = max(1, -(-(shown - low + 1) // 50))  # pictures of the same length stand in one bar
            edges = np.arange(low, shown + width + 1, width) - 0.5
            ax.hist(lengths[lengths <= edges[-1]], bins=edges, color=COLOURS[0], rwidth=0.86)
            median = float(np.quantile(lengths, 0.5, method="inverted_cdf"))
            ax.axvline(median, color=COLOURS[1], linewidth=1.2)
            beyond = int((lengths > edges[-1]).sum())
            ax.set_xlabel(label + (f"  ({beyond:,} longer ones, up to {high:,}, left out)" if beyond else ""))
            ax.set_ylabel(ylabel if ax is axes[0] else "")
            ax.set_xlim(min(low - 1, edges[0]), max(low + 9, edges[-1]))  # a lone bar stays a bar
            ax.grid(False, axis="x")
            ax.set_axisbelow(True)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            _count_axis(ax.yaxis)
            _beside_line(ax, median, f"median {median:,.0f}")
    return figure


def picture_sizes(sizes: Mapping[tuple[int, int], int]) -> Figure:
    """Width against height in pixels, a dot a size, its area growing with the pictures that have it."""
    width, height = np.array(list(sizes), np.float64).T
    often = np.array(list(sizes.values()), np.float64)
    low, high = min(width.min(), height.min()), max(width.max(), height.max())
    log = high / low > 12
    with style():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        ax = figure.subplots()
        small, large, alpha = (16, 260, 0.55) if len(sizes) <= 200 else (6, 160, 0.3)
        ax.scatter(width, height, s=small + large * often / often.sum(), color=COLOURS[0], alpha=alpha, linewidths=0)
        margin = (low / 1.3, high * 1.3) if log else (0, high * 1.15)
        ax.plot(margin, margin, color="#9aa3ad", linestyle=":", linewidth=1, zorder=0)
        ax.set(xlabel="width (pixels)", ylabel="height (pixels)")
        if log:
            ax.set(xscale="log", yscale="log")
        ax.set(xlim=margin, ylim=margin)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            if log:
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
                axis.set_minor_formatter(NullFormatter())
            else:
                _count_axis(axis)
        if len(sizes) <= 3:
            for (w, h), count in sizes.items():
                ax.annotate(
                    f"{w:,} × {h:,}: {count:,}", (w, h), xytext=(0, 14), textcoords="offset points", ha="center"
                )
        ax.set_aspect("equal")
    return figure


def _bars(names: Sequence[str], splits: Sequence[str], table: NDArray[np.int64]) -> Figure:
    place = np.arange(len(names))[::-1]
    figure = Figure(figsize=(7.2, 1.1 + 0.21 * len(names)), layout="constrained")
    ax = figure.subplots()
    start = np.zeros(len(names), np.int64)
    for number, split in enumerate(splits):
        if table[number].any():
            ax.barh(place, table[number], left=start, height=0.72, color=COLOURS[number % len(COLOURS)], label=split)
            start = start + table[number]
    for y, total in zip(place, start.tolist(), strict=True):
        ax.annotate(f"{total:,}", (total, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5)
    ax.set_yticks(place, [short(name, 40) for name in names], fontsize=8)
    ax.set_xlabel("pictures")
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.set_xlim(0, max(1, start.max()) * 1.08)
    ax.grid(False, axis="y")
    ax.set_axisbelow(True)
    _count_axis(ax.xaxis)
    _legend(ax)
    return figure


def _ranks(names: Sequence[str], splits: Sequence[str], table: NDArray[np.int64]) -> Figure:
    """Each line is sorted by itself: the n-th point is the n-th largest class of that split."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    ax = figure.subplots()
    total = np.sort(table.sum(0))[::-1]
    rank = np.arange(1, len(total) + 1)
    used = [number for number in range(len(splits)) if table[number].any()]
    if len(used) != 1:
        ax.plot(rank, total, color=INK, linewidth=1.8, label="all")
    for number in used:
        line = np.sort(table[number])[::-1]
        ax.plot(rank, line, color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=splits[number])
    log = total[0] > 20 * max(1, total[-1])
    if log:
        ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(0, max(1, total[0]) * (3 if log else 1.3))
    ax.set_xlim(0, len(total) + 1)
    middle = len(total) // 2
    marks = (("most", 0, (9, 0), "left"), ("median", middle, (0, 12), "center"), ("fewest", -1, (0, 26), "right"))
    for what, index, offset, side in marks:
        x, y = int(rank[index]), int(total[index])
        ax.plot([x], [y], "o", color=INK, markersize=4)
        ax.annotate(
            f"{what}: {y:,}\n{short(names[index], 32)}", (x, y), xytext=offset, textcoords="offset points",
            ha=side, fontsize=8, color=INK, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    ax.set(xlabel=f"classes by rank ({len(total):,}; each line sorted by itself)", ylabel="pictures")
    _count_axis(ax.xaxis)
    if not log:
        _count_axis(ax.yaxis)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _legend(ax)
    return figure


def _legend(ax: Axes) -> None:
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, fontsize=8, borderaxespad=0.2)


def _beside_line(ax: Axes, x: float, text: str) -> None:
    """A note at the top of a vertical line, on the side that has room."""
    left, right = ax.get_xlim()
    beyond = x > (left + right) / 2
    ax.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(-4 if beyond else 4, -1), textcoords="offset points",
        ha="right" if beyond else "left", va="top", fontsize=8, color=COLOURS[1],
    )  # fmt: skip


def _count_axis(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
