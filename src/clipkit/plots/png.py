"""A figure as a PNG file's bytes; drawn once, however many places want it."""

import io
from weakref import WeakKeyDictionary

from matplotlib.figure import Figure

__all__ = ["png"]

_DRAWN: WeakKeyDictionary[Figure, dict[int, bytes]] = WeakKeyDictionary()


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The picture of a finished figure: later changes of it are not seen."""
    drawn = _DRAWN.setdefault(figure, {})
    if dpi not in drawn:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        drawn[dpi] = buffer.getvalue()
    return drawn[dpi]
