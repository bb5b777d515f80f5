"""Decode a picture the same way everywhere: in training, in evaluation, and when a model is used."""

from PIL import Image, ImageOps

__all__ = ["decode"]


def decode(image: Image.Image) -> Image.Image:
    """Any PIL image -> RGB, 8 bits: decoded now (so that damage shows here), upright, transparency on white.

    Raises:
        OSError and other errors of PIL: the file is damaged.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    elif image.mode.startswith("I;16") or image.mode == "I":
        image = image.point(lambda value: value / 257).convert("L")  # 16 bits to 8: plain convert would clip
    return image.convert("RGB")
