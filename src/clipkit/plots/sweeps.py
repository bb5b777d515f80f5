"""How a search went: its trials in order, what each parameter is worth, and which values the good ones share."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipkit.plots.style import style

__all__ = ["objective_front", "parallel_coordinates", "parameter_importances", "trial_history"]

Value = float | int | str | bool | None
BEST, OTHER, FAINT = "#c8553d", "#2463a8", "#b9c2cb"
SHOWN = 24  # characters of a choice's name


def trial_history(
    finished: Mapping[int, float], *, metric: str, maximize: bool, unfinished: Mapping[str, Sequence[int]]
) -> Figure:
    """Each trial's value in order, and the best so far.

    Args:
        finished: value by trial number.
        metric: its name.
        maximize: whether more is better.
        unfinished: numbers of the trials without a value, by what became of them ("pruned", "failed").
    """
    numbers, values = list(finished), list(finished.values())
    best = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    with style():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        ax = figure.subplots()
        ax.scatter(numbers, values, s=16, color=OTHER, alpha=0.7, linewidths=0, label="a trial")
        ax.step(numbers, best, where="post", color=BEST, linewidth=1.8, label="best so far")
        for name, marks in unfinished.items():
            if marks:
                ax.plot(
                    marks, np.full(len(marks), 0.015), "|", transform=ax.get_xaxis_transform(), markersize=7,
                    color=FAINT if name == "pruned" else "#444444", label=f"{name} ({len(marks)})",
                )  # fmt: skip
        ax.set_xlabel("trial")
        ax.set_ylabel(metric)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=8, loc="lower right" if maximize else "upper right")
    return figure


def parameter_importances(shares: Mapping[str, float], *, metric: str) -> Figure:
    """Bars: which part of the value's variation each parameter explains.

    Args:
        shares: 0 … 1 by parameter.
        metric: whose variation it is.
    """
    ordered = sorted(shares.items(), key=lambda item: item[1])
    with style():
        figure = Figure(figsize=(7.6, 0.9 + 0.34 * len(ordered)), layout="constrained")
        ax = figure.subplots()
        bars = ax.barh([name for name, _ in ordered], [share for _, share in ordered], color=OTHER, height=0.62)
        ax.bar_label(bars, labels=[f"{share:.2f}" for _, share in ordered], padding=4, fontsize=8)
        ax.set_xlim(0, max(0.05, *shares.values()) * 1.12)
        ax.set_xlabel(f"share of what makes {metric} vary")
        ax.grid(axis="y", visible=False)
    return figure


def parallel_coordinates(
    parameters: Mapping[str, Sequence[Value]],
    values: Sequence[float],
    *,
    metric: str,
    maximize: bool,
    logs: Sequence[str] = (),
) -> Figure:
    """A line a trial through its parameters, coloured by its value; the best tenth is drawn strongly.

    Args:
        parameters: each trial's value of each; None where a trial has no such parameter.
        values: the trials'.
        metric: their name.
        maximize: whether more is better.
        logs: parameters with a logarithmic axis.
    """
    scores = np.asarray(values, float)
    order = np.argsort(scores if maximize else -scores, kind="stable")  # the best on top
    strong = set(order[-max(1, len(order) // 10) :].tolist())
    places, axes = [], []
    for name, column in [*parameters.items(), (metric, list(values))]:
        place, ticks = _axis(column, log=name in logs)
        places.append(place)
        axes.append((name, ticks))
    # the worst tenth would take all colours for itself
    low, high = (np.quantile(scores, 0.1), scores.max()) if maximize else (scores.min(), np.quantile(scores, 0.9))
    shade, colours = Normalize(low, max(high, low + 1e-12)), colormaps["viridis" if maximize else "viridis_r"]
    with style():
        figure = Figure(figsize=(max(6.0, 1.75 * len(axes)), 3.9), layout="constrained")
        ax = figure.subplots()
        x = np.arange(len(axes))
        for trial in order.tolist():
            y = [place[trial] for place in places]
            ax.plot(
                x, y, color=colours(shade(scores[trial])), linewidth=1.5 if trial in strong else 0.7,
                alpha=0.95 if trial in strong else 0.28,
            )  # fmt: skip
        for at, (_, ticks) in enumerate(axes):
            ax.axvline(at, color="#6b747d", linewidth=0.9, zorder=0)
            for height, text in ticks:
                ax.annotate(
                    text, (at, height), xytext=(4, 0), textcoords="offset points", fontsize=7.5, va="center",
                    bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.75},
                )  # fmt: skip
        ax.set_xticks(x, [_short(name) for name, _ in axes], fontsize=8)
        ax.set_xlim(-0.15, len(axes) - 0.55)
        ax.set_ylim(-0.06, 1.06)
        ax.set_yticks([])
        ax.grid(visible=False)
        for side in ("left", "right", "top", "bottom"):
            ax.spines[side].set_visible(False)
    return figure


def objective_front(
    points: Sequence[tuple[float, float]], front: Sequence[int], *, metrics: tuple[str, str], names: Sequence[int]
) -> Figure:
    """Trials by two objectives; those that none beats in both are joined and numbered.

    Args:
        points: both values of each trial.
        front: rows of the trials that none beats.
        metrics: the objectives.
        names: each trial's number.
    """
    with style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        x, y = np.asarray(points, float).T
        ax.scatter(x, y, s=16, color=OTHER, alpha=0.6, linewidths=0, label="a trial")
        rows = sorted(front, key=lambda row: (x[row], y[row]))
        ax.plot(x[rows], y[rows], "o-", color=BEST, markersize=5, linewidth=1.2, label="beaten by none in both")
        for row in rows:
            ax.annotate(str(names[row]), (x[row], y[row]), xytext=(5, 5), textcoords="offset points", fontsize=8)
        ax.set_xlabel(metrics[0])
        ax.set_ylabel(metrics[1])
        ax.legend(fontsize=8)
    return figure


def _axis(column: Sequence[Value], *, log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights 0 … 1 of a column's values (NaN for none), and ticks with their texts."""
    known = [value for value in column if value is not None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    distinct = list(dict.fromkeys(known))
    if not numeric or len(distinct) <= 4:
        distinct = sorted(distinct) if numeric else sorted(distinct, key=str)
        at = {value: (k / (len(distinct) - 1) if len(distinct) > 1 else 0.5) for k, value in enumerate(distinct)}
        texts = [(height, _shown(value)) for value, height in at.items()]
        return [at[value] if value is not None else np.nan for value in column], texts
    numbers = np.array([np.nan if value is None else float(value) for value in column])
    scaled = np.log10(numbers) if log else numbers
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    heights = (scaled - low) / (high - low)
    ticks = [(k / 4, low + (high - low) * k / 4) for k in range(5)]
    return heights.tolist(), [(height, _shown(10**value if log else value)) for height, value in ticks]


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _short(name: str) -> str:
    """The end of a key, in two lines where it is long."""
    parts = name.split(".")
    return "\n".join(parts[-2:]) if len(parts) > 1 else name
