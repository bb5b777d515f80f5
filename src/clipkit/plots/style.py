"""One look for all figures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.font_manager import fontManager, get_font

__all__ = ["COLOURS", "GOOD", "fonts_for", "short", "style"]

COLOURS = ("#2463a8", "#d1662c", "#3d8f5f", "#8a5aa8", "#b5404e", "#5b6470")
GOOD = "#2f9e5b"
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3a424a",
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.8,
    "xtick.color": "#5b6470",
    "ytick.color": "#5b6470",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.prop_cycle": cycler(color=list(COLOURS)),
}


@contextmanager
def style() -> Iterator[None]:
    """Figures drawn inside have the house's look; figures outside are left alone."""
    with matplotlib.rc_context(SETTINGS):
        yield


def short(text: str, limit: int) -> str:
    """A text of at most `limit` letters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip(" ,") + "…"


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Figures drawn inside find the letters of these texts, as far as fonts that have them are installed."""
    own = matplotlib.rcParams["font.family"]
    missing = {ord(letter) for text in texts for letter in text if letter.isprintable()}
    families = [*own]
    installed = [entry for entry in fontManager.ttflist if not entry.name.startswith("Last Resort")]  # boxes for all
    for entry in sorted(installed, key=lambda entry: entry.name not in own):
        if not missing:
            break
        try:
            found = missing & get_font(entry.fname).get_charmap().keys()
        except (OSError, RuntimeError):  # a damaged font, or one that matplotlib cannot draw
            continue
        missing -= found
        families += [entry.name] if found and entry.name not in families else []
    with matplotlib.rc_context({"font.family": families}):
        yield
