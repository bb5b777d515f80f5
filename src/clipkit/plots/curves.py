"""How training went: losses, validation scores, learning rates."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from clipkit.plots.style import style

__all__ = ["curves"]

Series = tuple[Sequence[float], Sequence[float]]


def curves(
    panels: Mapping[str, Mapping[str, Series]], *, xlabel: str, boundaries: Mapping[str, float] | None = None
) -> Figure:
    """One panel per entry, side by side, each with its named lines.

    Args:
        panels: title -> line name -> (x, y).
        xlabel: of all panels.
        boundaries: stage name -> where it starts on the x axis; drawn as dotted lines.
    """
    boundaries = boundaries or {}
    with style():
        figure = Figure(figsize=(4.4 * len(panels), 3.1), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, (x, y) in lines.items():
                marker = "o" if len(x) <= 30 else None
                ax.plot(x, y, label=name, linewidth=1.6, marker=marker, markersize=3)
            for stage, start in boundaries.items():
                if start > min((min(x) for x, _ in lines.values() if len(x)), default=0):
                    ax.axvline(start, color="#9aa3ad", linestyle=":", linewidth=1)
                note = ax.annotate(
                    stage, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                    va="top", fontsize=8, color="#7b848d", annotation_clip=True,
                )  # fmt: skip
                note.set_in_layout(False)  # a stage that starts before a panel's first point would squeeze it
            ax.set_title(title, pad=8)
            ax.set_xlabel(xlabel)
            if len(lines) > 1:
                ax.legend(fontsize=8)
    return figure
