"""Words written on pictures, as in a typographic attack: several fonts, sizes, places and looks.

The fonts are those that matplotlib brings along. How a picture is written on is a function of (seed, image id).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clipkit.data.randomness import uniform

__all__ = ["FONTS", "LOOKS", "PLACES", "Writing", "writable", "write", "writings"]

FONTS = {
    "Sans": "DejaVuSans.ttf",
    "Sans Bold": "DejaVuSans-Bold.ttf",
    "Serif": "DejaVuSerif.ttf",
    "Serif Bold": "DejaVuSerif-Bold.ttf",
    "Mono": "DejaVuSansMono.ttf",
    "Mono Bold": "DejaVuSansMono-Bold.ttf",
}
PLACES = {
    f"{row} {column}".strip(): (across, down)
    for row, down in (("top", 0.0), ("middle", 0.5), ("bottom", 1.0))
    for column, across in (("left", 0.0), ("", 0.5), ("right", 1.0))
}
LOOKS = {  # ink, behind it
    "black on a white plate": ("black", "plate"),
    "white on a black plate": ("white", "plate"),
    "black with a white outline": ("black", "outline"),
    "white with a black outline": ("white", "outline"),
}
SMALLEST, LARGEST = 0.12, 0.24  # of the square's side: the size of the letters (their em)
LEGIBLE = 8  # pixels: letters are made no smaller to fit
WIDE, TALL = 0.94, 0.5  # of the side: the room that a text may take


class Writing(NamedTuple):
    """How a text is written: a key of `FONTS`, the em as a share of the side, and keys of `PLACES` and `LOOKS`."""

    font: str
    size: float
    place: str
    look: str


def writings(seed: int, image_ids: NDArray[np.int64]) -> list[Writing]:
    """One way to write for each picture, by (seed, image id) alone."""
    draws = uniform(seed, 0, image_ids, 4, purpose="writing")
    fonts, places, looks = list(FONTS), list(PLACES), list(LOOKS)
    return [
        Writing(
            fonts[int(font * len(fonts))],
            SMALLEST + float(size) * (LARGEST - SMALLEST),
            places[int(place * len(places))],
            looks[int(look * len(looks))],
        )
        for font, size, place, look in draws
    ]


def writable(texts: Sequence[str]) -> NDArray[np.bool_]:
    """[len(texts)] whether every font has all letters of a text, and there is a letter to be seen."""
    from matplotlib.font_manager import get_font

    have = set.intersection(*({*get_font(_font_file(name)).get_charmap()} for name in FONTS.values()))
    return np.array([bool(text.strip()) and {ord(c) for c in text if not c.isspace()} <= have for text in texts], bool)


def write(square: Tensor, text: str, writing: Writing) -> Tensor:
    """A text on a picture, wrapped and made smaller until it fits; what fits at no legible size is cut with "…".

    Args:
        square: uint8 [3, S, S].
        text: the words.
        writing: how.

    Returns:
        uint8 [3, S, S]; the argument is left alone.
    """
    side = square.shape[-1]
    image = Image.fromarray(np.ascontiguousarray(square.permute(1, 2, 0).numpy()))
    pen = ImageDraw.Draw(image)
    lines, font = _fitted(text, writing.font, writing.size * side, side)
    ink, behind = LOOKS[writing.look]
    other = "white" if ink == "black" else "black"
    height = sum(font.getmetrics())
    border = max(1, round(font.size / 9))
    wide, tall = max(font.getlength(line) for line in lines) + 2 * border, height * len(lines) + 2 * border
    across, down = PLACES[writing.place]
    margin = round(0.02 * side)
    left, top = (round(margin + share * (side - 2 * margin - room)) for share, room in ((across, wide), (down, tall)))
    if behind == "plate":
        pen.rectangle((left, top, left + round(wide), top + tall), fill=other)
    for number, line in enumerate(lines):
        start = left + border + (wide - 2 * border - font.getlength(line)) * across
        stroke = border if behind == "outline" else 0
        place = (round(start), top + border + number * height)
        pen.text(place, line, fill=ink, font=font, stroke_width=stroke, stroke_fill=other)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _fitted(text: str, name: str, wanted: float, side: int) -> tuple[list[str], ImageFont.FreeTypeFont]:
    """The lines, and the font in the largest size up to the wanted one in which they fit."""
    room = WIDE * side - 2 * max(1, wanted / 9)
    for size in range(max(LEGIBLE, round(wanted)), LEGIBLE - 1, -1):
        font = _font(name, size)
        lines = _wrapped(text.split(), font, room)
        fits = len(lines) * sum(font.getmetrics()) <= TALL * side
        if fits and all(font.getlength(line) <= room for line in lines):
            return lines, font
    most = max(1, int(TALL * side / sum(font.getmetrics())))
    broken = _wrapped([part for word in text.split() for part in _pieces(word, font, room)], font, room)
    if len(broken) <= most:
        return broken, font
    last = broken[most - 1]
    while last and font.getlength(last + "…") > room:
        last = last[:-1]
    return [*broken[: most - 1], last + "…"], font


def _wrapped(words: Sequence[str], font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """A word cut into parts of which each fits on a line."""
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > room:
            parts.append("")
        parts[-1] += letter
    return parts


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # the basic layout: the same pixels whether or not Pillow was built with another
    return ImageFont.truetype(_font_file(FONTS[name]), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(name: str) -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)
