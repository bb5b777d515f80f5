"""Small copies of pictures, for pages and figures."""

from collections.abc import Iterable

from PIL import Image

from clipkit.data.decoding import DECODE_ERRORS
from clipkit.data.gallery import Gallery

__all__ = ["thumbnail", "thumbnails"]


def thumbnail(gallery: Gallery, name: str, *, side: int) -> Image.Image | None:
    """A picture whose longer side has at most so many pixels; None if it cannot be read (any more)."""
    try:
        picture = gallery.reader(name)
    except DECODE_ERRORS:
        return None
    picture.thumbnail((side, side))
    return picture


def thumbnails(gallery: Gallery, names: Iterable[str], *, side: int) -> dict[str, Image.Image]:
    """The small copies of those that can be read, by name."""
    found = {name: thumbnail(gallery, name, side=side) for name in dict.fromkeys(names)}
    return {name: picture for name, picture in found.items() if picture is not None}
