"""What a fine-tuned model has gained on its own data against what it has kept on other data."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from clipkit.plots.style import COLOURS, style

__all__ = ["trade_off"]

INK = "#22303c"


def trade_off(
    alphas: Sequence[float], target: Sequence[float], kept: Sequence[float] | None, *, names: tuple[str, str]
) -> Figure:
    """Accuracies of the models between a start (α = 0) and what it became (α = 1).

    Args:
        alphas: A mixing weights, rising.
        target: A accuracies on the model's own data, 0–1; the x axis where there is a second data set.
        kept: A zero-shot accuracies on that second one, or None: `target` is then drawn over α.
        names: of the two data sets.
    """
    marked = {0.0: "start, α = 0", 1.0: "run, α = 1"}
    with style():
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        ax = figure.subplots()
        x, y = (alphas, target) if kept is None else (target, kept)
        ax.plot(x, y, color=COLOURS[0], linewidth=1.4, marker="o", markersize=4, zorder=2)
        away, side = ((0, -16), "center") if kept is None else ((7, 4), "left")  # such curves bulge up and right
        for alpha, across, up in zip(alphas, x, y, strict=True):
            if alpha in marked:
                ax.plot([across], [up], "o", color=COLOURS[1], markersize=8, zorder=3)
                ax.annotate(marked[alpha], (across, up), xytext=away, textcoords="offset points", ha=side,
                            fontsize=8, color=INK, weight="bold")  # fmt: skip
            elif kept is not None:
                ax.annotate(f"{alpha:.1f}", (across, up), xytext=(6, 4), textcoords="offset points",
                            fontsize=7, color="#7b848d")  # fmt: skip
        if kept is None:
            ax.set(xlabel="α: share of the run's weights", ylabel=f"accuracy on {names[0]}")
        else:
            ax.set(xlabel=f"accuracy on {names[0]}", ylabel=f"zero-shot accuracy on {names[1]}")
        ax.margins(0.14, 0.18)
    return figure
