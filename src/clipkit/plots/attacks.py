"""Pictures before and after something was written on them, with what a model said of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clipkit.plots.style import COLOURS, GOOD, fonts_for, short, style

__all__ = ["AttackedPicture", "attack_grid"]

Picture = NDArray[np.uint8]  # [H, W, 3]
ACROSS = 6
INK, SOFT, BAD = "#22303c", "#5b6470", COLOURS[4]


class AttackedPicture(NamedTuple):
    """A picture, the same attacked, its class, the word written on it, and the answers to both."""

    picture: Picture
    changed: Picture
    label: str
    word: str
    before: str
    after: str
    right_before: bool
    right_after: bool
    follows_word: bool


def attack_grid(shown: Sequence[AttackedPicture]) -> Figure:
    """Each picture above its attacked self; frames and answers are green if right, red if the word was followed."""
    cell, label, between = 1.32, 0.24, 0.14  # inches
    across = min(ACROSS, len(shown))
    blocks = -(-len(shown) // across)
    block = 2 * (cell + label) + label
    width, height = max(5.2, 0.2 + across * (cell + 0.12)), 0.4 + blocks * (block + between)
    with style(), fonts_for([text for one in shown for text in (one.label, one.word, one.before, one.after)]):
        figure = Figure(figsize=(width, height))
        for index, one in enumerate(shown):
            row, column = divmod(index, across)
            left, top = 0.14 + column * (cell + 0.12), 0.52 + row * (block + between)

            def say(down: float, text: str, colour: str, *, bold: bool = False, x: float = left) -> None:
                figure.text(x / width, 1 - down / height, short(text, 20), color=colour, fontsize=7.5, va="baseline",
                            weight="bold" if bold else "normal")  # fmt: skip

            def place(down: float, x: float = left) -> Axes:
                return figure.add_axes((x / width, 1 - (down + cell) / height, cell / width, cell / height))

            say(top + 0.1, one.label, INK, bold=True)
            colour = GOOD if one.right_before else SOFT
            _show(place(top + label - 0.06), one.picture, colour)
            say(top + label + cell + 0.08, f"says {one.before}", colour)
            colour = GOOD if one.right_after else BAD if one.follows_word else SOFT
            _show(place(top + 2 * label + cell - 0.06), one.changed, colour)
            say(top + 2 * label + 2 * cell + 0.08, f"says {one.after}", colour)
        figure.text(0.14 / width, 1 - 0.24 / height, "right", color=GOOD, weight="bold")
        figure.text(0.68 / width, 1 - 0.24 / height, "follows the word", color=BAD, weight="bold")
        figure.text(2.06 / width, 1 - 0.24 / height, "another answer", color=SOFT, weight="bold")
    return figure


def _show(ax: Axes, picture: Picture, colour: str) -> None:
    ax.imshow(picture)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color=colour, linewidth=2)
