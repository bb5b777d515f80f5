"""Decode a picture the same way everywhere: in training, in evaluation, and when a model is used."""

import numpy as np
from PIL import ExifTags, Image, ImageOps

__all__ = ["decode", "orientation"]


def decode(image: Image.Image) -> Image.Image:
    """Any PIL image -> RGB, 8 bits: decoded now (so that damage shows here), upright, transparency on white.

    Of an animation it is the first frame. Deeper grey is scaled to 8 bits; grey in floating point counts from 0 to 1,
    or, if it goes beyond, from 0 to its largest value.

    Raises:
        OSError and other errors of PIL: the file is damaged.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    elif image.mode.startswith("I;16") or image.mode == "I":
        image = image.point(lambda value: value / 257).convert("L")  # 16 bits to 8: plain convert would clip
    elif image.mode == "F":
        grey = np.nan_to_num(np.asarray(image), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        image = Image.fromarray((grey * (255 / max(1.0, float(grey.max(initial=0))))).round().astype(np.uint8))
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF numbers it: 1 is upright. Only the header is read."""
    if "exif" not in image.info and "xmp" not in image.info:
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))
