"""The tree above clusters of pictures, each with its size, name and pictures; and how their number was chosen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clipkit.plots.style import COLOURS, fonts_for, short, style

__all__ = ["cluster_count_curve", "dendrogram"]

Picture = NDArray[np.uint8]  # [H, W, 3]

INK, GREY, TRUNK = "#22303c", "#5b6470", "#9aa3ad"
STRIP = 8  # pictures in a row
FEW = 16  # rows with large pictures
TREE, TOP, BOTTOM = 3.6, 0.62, 0.55  # inches
NAME = 26  # letters


class _Group:
    """A row of the figure: one cluster, or several that are drawn as one."""

    def __init__(self, clusters: Sequence[int], height: float) -> None:
        self.clusters, self.height = clusters, height


def dendrogram(
    linkage: NDArray[np.float64],
    *,
    cut: float,
    counts: Sequence[int],
    names: Sequence[str] | None = None,
    pictures: Sequence[Sequence[Picture]] | None = None,
    heights: Sequence[float] | None = None,
    most: int = 40,
    distance: str = "distance",
) -> Figure:
    """One row a cluster, the tree to its left; at each fork the part with more pictures is above.

    Where there are more than `most` clusters, the lowest merges are drawn as rows of several.

    Args:
        linkage: [K − 1, 4] in scipy's form, above K clusters (`Clusters.tree`).
        cut: the height at which the tree was cut into these.
        counts: [K] pictures of each.
        names: [K] proposed for each.
        pictures: [K] a few of each, the most typical first.
        heights: [K] at which each cluster itself came together; its triangle ends there.
        most: rows.
        distance: what heights are, for the axis.
    """
    if not len(counts) or len(linkage) != len(counts) - 1:
        raise ValueError(f"{len(counts)} clusters and {len(linkage)} merges: a tree has one merge less than clusters")
    tree, groups = _rows(linkage, heights if heights is not None else [0.0] * len(counts), most)
    sizes = [sum(counts[k] for k in group.clusters) for group in groups]
    order = _order(tree, sizes)
    shown = [_pictures(groups[index], counts, pictures) for index in order]
    words = [_words(groups[index], counts, names) for index in order]
    strip, cell = max(map(len, shown)), 0.62 if len(order) <= FEW else 0.5
    row = cell if strip else 0.4
    aside = 0.25 + 0.08 * max(max(len(name), 0.85 * len(said)) for name, said in words)  # inches, about
    width, height = TREE + aside + strip * cell + 0.15, TOP + BOTTOM + row * len(order)
    with style(), fonts_for(names or []):
        figure = Figure(figsize=(width, height))
        ax = figure.add_axes((0.3 / width, BOTTOM / height, (TREE - 0.3) / width, row * len(order) / height))
        _draw_tree(ax, tree, groups, order, cut)
        ax.set_xlabel(distance)
        beside = figure.add_axes((TREE / width, BOTTOM / height, (width - TREE) / width, row * len(order) / height))
        beside.set_axis_off()
        beside.set(xlim=(0, width - TREE), ylim=(len(order) - 0.5, -0.5))
        for place, (name, said) in enumerate(words):
            beside.text(0.08, place - 0.02, name, va="bottom", weight="bold", color=INK, parse_math=False)
            beside.text(0.08, place + 0.06, said, va="top", fontsize=8, color=GREY)
            for column, picture in enumerate(shown[place]):
                _show(beside, picture, (aside + (column + 0.5) * cell, place), cell=cell, row=row)
        title = f"{_counted(len(counts), 'cluster')} of {_counted(sum(counts), 'picture')}"
        title += f", in {len(order)} rows" if len(order) < len(counts) else ""
        figure.text(0.3 / width, 1 - 0.15 / height, title, va="top", fontsize=11, weight="bold", color=INK)
    return figure


def cluster_count_curve(table: pd.DataFrame) -> Figure:
    """Score against number of clusters, the chosen one marked.

    Args:
        table: columns `clusters`, the score by its name, `chosen` (`Clusters.table`); at least one row.
    """
    name = str(table.columns[1])
    numbers, scores, chosen = table["clusters"], table[name], table[table["chosen"]]
    said, middle = name.replace("_", "–").title(), (numbers.min() + numbers.max()) / 2
    with style():
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        ax = figure.subplots()
        ax.plot(numbers, scores, color=COLOURS[0], linewidth=1.6, marker="o", markersize=3)
        for number, score in zip(chosen["clusters"], chosen[name], strict=True):
            ax.axvline(number, color=COLOURS[1], linestyle="--", linewidth=1.2, zorder=0)
            ax.plot(number, score, "o", markersize=8, color=COLOURS[1])
            side = 1 if number <= middle else -1
            ax.annotate(f"{number} clusters, {score:.3g}", (number, score), (8 * side, 8), textcoords="offset points",
                        ha="left" if side > 0 else "right", color=COLOURS[1], weight="bold")  # fmt: skip
        ax.set(xlabel="number of clusters", ylabel=said)
        ax.margins(y=0.2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(f"{said}: {'smaller' if name == 'davies_bouldin' else 'larger'} is better", pad=8)
    return figure


def _rows(
    linkage: NDArray[np.float64], heights: Sequence[float], most: int
) -> tuple[NDArray[np.float64], list[_Group]]:
    """The last merges, at most `most` − 1, over the rows that they join."""
    leaves = len(linkage) + 1
    kept = max(0, leaves - most)
    groups = {k: _Group([k], height) for k, height in enumerate(heights)}
    for number, (left, right, height, _) in enumerate(linkage[:kept]):
        joined = [*groups.pop(int(left)).clusters, *groups.pop(int(right)).clusters]
        groups[leaves + number] = _Group(joined, height)
    place = {node: index for index, node in enumerate(groups)}
    place |= {leaves + kept + number: len(groups) + number for number in range(len(linkage) - kept)}
    top = [[place[int(left)], place[int(right)], height] for left, right, height, _ in linkage[kept:]]
    return np.array(top).reshape(-1, 3), list(groups.values())


def _order(tree: NDArray[np.float64], sizes: Sequence[int]) -> list[int]:
    """The rows from top to bottom."""
    below, total = [[index] for index in range(len(sizes))], list(sizes)
    for left, right in tree[:, :2].astype(int):
        first, second = sorted((left, right), key=lambda node: -total[node])
        below.append(below[first] + below[second])
        total.append(total[left] + total[right])
    return below[-1]


def _pictures(group: _Group, counts: Sequence[int], pictures: Sequence[Sequence[Picture]] | None) -> list[Picture]:
    """The pictures of a row: by turns, where it stands for several clusters."""
    if pictures is None:
        return []
    clusters = sorted(group.clusters, key=lambda k: -counts[k])
    longest = max(len(pictures[k]) for k in clusters)
    turns = [pictures[k][turn] for turn in range(longest) for k in clusters if turn < len(pictures[k])]
    return turns[:STRIP]


def _draw_tree(ax: Axes, tree: NDArray[np.float64], groups: Sequence[_Group], order: Sequence[int], cut: float) -> None:
    """Heights from right (0) to left."""
    y = np.empty(len(groups) + len(tree))
    y[list(order)] = np.arange(len(order))
    start = [group.height for group in groups]
    look: dict[str, Any] = {"color": TRUNK, "linewidth": 1.3, "solid_capstyle": "round"}
    for row, (left, right, height) in enumerate(tree):
        ends = [int(left), int(right)]
        y[len(groups) + row] = y[ends].mean()
        ax.plot([start[ends[0]], height, height, start[ends[1]]], [y[ends[0]], *y[ends], y[ends[1]]], **look)
        start.append(height)
    for place, index in enumerate(order):
        colour = COLOURS[place % len(COLOURS)]
        corners = [(groups[index].height, place), (0, place - 0.3), (0, place + 0.3)]
        ax.fill(*zip(*corners, strict=True), color=colour, alpha=0.85, linewidth=1.3)
    top = max([cut, *start])
    ax.set(xlim=(1.06 * top if top > 0 else 1, 0), ylim=(len(order) - 0.5, -0.5))
    ax.axvline(cut, color=COLOURS[4], linestyle="--", linewidth=1.2)
    ax.annotate(f"cut at {cut:.3g}", (cut, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", color=COLOURS[4], fontsize=8)  # fmt: skip
    ax.set_axisbelow(True)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _words(group: _Group, counts: Sequence[int], names: Sequence[str] | None) -> tuple[str, str]:
    """The name of a row's largest cluster, and the row's size."""
    largest = max(group.clusters, key=lambda k: counts[k])
    name = short(names[largest] if names is not None else f"cluster {largest + 1}", NAME)
    said, further = _counted(sum(counts[k] for k in group.clusters), "picture"), len(group.clusters) - 1
    return (f"{name} and {further} more", f"{said} in {further + 1} clusters") if further else (name, said)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _show(ax: Axes, picture: Picture, place: tuple[float, float], *, cell: float, row: float) -> None:
    """A picture in its own proportions around a place (x in inches, y in rows); cells and rows have so many inches."""
    height, width = picture.shape[:2]
    scale, (x, y) = 0.92 * cell / max(height, width), place
    half, tall = scale * width / 2, scale * height / 2 / row
    ax.imshow(picture, extent=(x - half, x + half, y + tall, y - tall), aspect="auto", interpolation="antialiased")
