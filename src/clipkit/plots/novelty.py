"""How far novelty scores tell pictures of unknown classes from known ones: densities, ROC and DET curves."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.metrics import roc_curve

from clipkit.metrics.novelty import novelty_metrics
from clipkit.plots.style import COLOURS, short, style

__all__ = ["novelty_density", "novelty_det", "novelty_roc"]

Scored = Mapping[str, tuple[ArrayLike, ArrayLike]]  # detector -> (scores [N], novel [N] bool)

LINES = ("-", (0, (4, 2)), ":")  # after six colours the line changes
FEW = 60  # up to so many pictures of a kind each gets a mark of its own
SHOWN = (0.5, 99.5)  # percentiles of all scores between which a density is drawn
NAME = 28  # letters of a detector's name in a legend
FAR = 2  # times the range of the known scores that is drawn beyond it
INK, PALE = "#3a424a", "#9aa3ad"
PER_CENT = (0.1, 0.5, 2, 5, 10, 20, 40, 60, 80, 90, 95, 98, 99.5, 99.9)


def novelty_density(
    known: ArrayLike,
    novel: ArrayLike,
    threshold: float,
    *,
    xlabel: str = "novelty score",
    kinds: tuple[str, str] = ("known", "novel"),
) -> Figure:
    """Histograms of both kinds' scores, each adding up to 100 %, and what lies on either side of the threshold.

    Scores far out are counted in the outermost bins, which the axis then says.

    Args:
        known, novel: scores, higher is more novel, equal scores allowed; there may be no novel one.
        threshold: a score above it means novel.
        xlabel: what the score is, for example the detector's name.
        kinds: what the two are called.
    """
    drawn = [(kinds[0], np.asarray(known, float), COLOURS[0]), (kinds[1], np.asarray(novel, float), COLOURS[1])]
    every = np.concatenate([values for _, values, _ in drawn])
    edges = _edges(drawn[0][1], every, threshold, fewest=min(len(values) for _, values, _ in drawn if len(values)))
    low, high = edges[0], edges[-1]
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(threshold, high, color="#f1f3f5", zorder=0, linewidth=0)
        for place, (name, values, colour) in enumerate(drawn):
            if not len(values):
                continue
            inside = np.clip(values, low, high)
            shares = 100 * np.histogram(-inside, -edges[::-1])[0][::-1] / len(values)  # bins hold their upper end
            above = 100 * float((values > threshold).mean())
            label = f"{name} ({len(values):,}): {100 - above:.1f} % taken for known, {above:.1f} % called novel"
            ax.stairs(shares, edges, fill=True, color=colour, alpha=0.28, zorder=2)
            ax.stairs(shares, edges, color=colour, linewidth=1.5, label=label, zorder=3)
            if len(values) <= FEW:
                ax.plot(inside, np.full(len(inside), -0.03 - 0.035 * place), "|", transform=ax.get_xaxis_transform(),
                        color=colour, markersize=6, markeredgewidth=1.2, clip_on=False)  # fmt: skip
        if any(len(values) <= FEW for _, values, _ in drawn):
            ax.tick_params(axis="x", pad=12)
        ax.axvline(threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 2)), label=f"threshold {threshold:.4g}")
        for words, side, shift in (("taken for known", "right", -5), ("called novel", "left", 5)):
            ax.annotate(words, (threshold, 1), xycoords=("data", "axes fraction"), xytext=(shift, -3),
                        textcoords="offset points", ha=side, va="top", fontsize=8, color=INK)  # fmt: skip
        far = int(((every < low) | (every > high)).sum())
        note = f"; {far:,} further out are in the outermost bins" if far else ""
        ax.set(xlabel=f"{xlabel}{note}", ylabel="share of the kind's pictures (%)", xlim=(low, high))
        ax.set_ylim(0, 1.12 * ax.dataLim.y1)
        ax.grid(False, axis="x")
        figure.legend(loc="outside upper left", fontsize=8, ncols=1)
    return figure


def novelty_roc(detectors: Scored) -> Figure:
    """One ROC curve a detector, the best area first in the legend.

    Args:
        detectors: name -> (scores [N], higher is more novel; novel [N] bool, with both kinds).
    """
    with style():
        figure, ax = _square(detectors, "known pictures called novel (%)", "novel pictures found (%)")
        ax.plot([0, 100], [0, 100], color=PALE, linestyle=":", linewidth=1.2)
        for curve in _curves(detectors, "auroc", highest_first=True):
            ax.plot(100 * curve.refused, 100 * curve.found, label=f"{curve.value:.3f}  {curve.name}", **curve.look)
        ax.set(xlim=(-1, 101), ylim=(-1, 101))
        _legend(ax, "AUROC, detector")
    return figure


def novelty_det(detectors: Scored) -> Figure:
    """Misses against false alarms (detection error trade-off), both on axes of normal deviates.

    Scores that are normally distributed for either kind give a straight line. Shares of 0 and of 100 % have no place
    there: they stand at half a picture, or at 0.1 % where that is more. A dot marks the equal error rate; the best one
    is first in the legend.

    Args:
        detectors: name -> (scores [N], higher is more novel; novel [N] bool, with both kinds).
    """
    kinds = [np.asarray(novel, bool) for _, novel in detectors.values()]
    sizes = [min(int(novel.sum()), int((~novel).sum())) for novel in kinds]
    least = float(np.clip(0.5 / max(sizes, default=1), 0.001, 0.1))
    ends = norm.ppf([least, 1 - least])
    ticks = [share for share in PER_CENT if least - 1e-9 <= share / 100 <= 1 - least + 1e-9]
    with style():
        figure, ax = _square(detectors, "known pictures called novel (%)", "novel pictures missed (%)")
        ax.plot(ends, ends, color=PALE, linestyle=":", linewidth=1.2)
        for curve in _curves(detectors, "eer", highest_first=False):
            x, y = (norm.ppf(np.clip(share, least, 1 - least)) for share in (curve.refused, 1 - curve.found))
            label = f"{100 * curve.value:.1f} %  {curve.name}"
            ax.plot(x, y, label=label, **curve.look)
            middle = norm.ppf(np.clip(curve.value, least, 1 - least))
            ax.plot(middle, middle, "o", color=curve.look["color"], markersize=4, zorder=4)
        places, names = norm.ppf(np.array(ticks) / 100), [f"{share:g}" for share in ticks]
        ax.set_xticks(places, names)
        ax.set_yticks(places, names)
        margin = 0.03 * (ends[1] - ends[0])
        ax.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(ends[0] - margin, ends[1] + margin))
        ax.tick_params(labelsize=8)
        _legend(ax, "equal error rate, detector")
    return figure


class _Curve(NamedTuple):
    name: str
    value: float  # of the metric that the legend says
    refused: NDArray[np.float64]  # share of the known pictures above each threshold
    found: NDArray[np.float64]  # share of the novel ones
    look: dict[str, Any]


def _curves(detectors: Scored, metric: str, *, highest_first: bool) -> Iterator[_Curve]:
    """The detectors' curves, best first; a detector looks the same in every figure with the same detectors."""
    curves = []
    for number, (name, (scores, novel)) in enumerate(detectors.items()):
        value = novelty_metrics(scores, novel)[metric]
        refused, found, _ = roc_curve(np.asarray(novel, bool), np.asarray(scores, float), drop_intermediate=False)
        turn, colour = divmod(number, len(COLOURS))
        look: dict[str, Any] = {"color": COLOURS[colour], "linestyle": LINES[turn % len(LINES)], "linewidth": 1.6}
        curves.append(_Curve(short(name, NAME), value, refused, found, look))
    yield from sorted(curves, key=lambda curve: curve.value, reverse=highest_first)


def _square(names: Iterable[str], xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    longest = max((len(short(name, NAME)) for name in names), default=0)
    figure = Figure(figsize=(5.8 + 0.075 * longest, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_box_aspect(1)
    return figure, ax


def _legend(ax: Axes, title: str) -> None:
    """On the right; a line is wide enough to show how it is dashed."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize=8, handlelength=2.6, title=title,
              title_fontsize=8, alignment="left")  # fmt: skip


def _edges(
    known: NDArray[np.float64], every: NDArray[np.float64], threshold: float, *, fewest: int
) -> NDArray[np.float64]:
    """Edges of bins, of which the threshold is one, over most of the scores: how far the known ones say."""
    low, high = np.percentile(every, SHOWN) if len(every) > FEW else (every.min(), every.max())
    first, last = np.percentile(known, (1, 99))
    if last > first:  # a few novel pictures that are ever so far out must not squeeze the others into one bin
        low, high = max(low, first - FAR * (last - first)), min(high, last + FAR * (last - first))
    low, high = min(low, threshold), max(high, threshold)
    room = 0.04 * (high - low) or max(abs(low), 1.0) * 0.05
    low, high = low - room, high + room
    width = (high - low) / np.clip(2 * np.sqrt(fewest), 10, 50)
    return np.asarray(threshold + width * np.arange(-np.ceil((threshold - low) / width),
                                                    np.ceil((high - threshold) / width) + 1))  # fmt: skip
