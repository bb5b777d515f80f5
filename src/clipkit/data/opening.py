"""Open part of a picture as a square of uint8 pixels: decode no more than is needed, crop, resize.

A random crop of a JPEG is decoded by libjpeg at the scale that the crop needs, straight into channels-last bytes, and
resized there: about twice as fast as a resized PIL picture turned into floats (`python -m benchmarks.loader`).
"""

import io
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from clipkit.data.images import EncodedReader, ImageReader
from clipkit.pictures import decode, orientation

__all__ = ["Box", "Choose", "as_tensor", "open_crop", "resized_crop"]

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Choose = Callable[[int, int], Box]  # from a picture's height and width


def open_crop(reader: ImageReader, name: str, choose: Choose, size: int) -> Tensor:
    """A part of a picture -> uint8 [3, size, size], RGB, in channels-last memory.

    Args:
        reader: opens the picture.
        name: of the picture.
        choose: the part, from the picture's height and width as a person sees it (upright).
        size: side of the square.

    Raises:
        OSError and other errors of PIL: the picture is damaged or missing.
    """
    if not isinstance(reader, EncodedReader):
        return resized_crop(as_tensor(reader(name)), choose, size)
    return decode_crop(reader.read(name), choose, size)


def decode_crop(data: bytes, choose: Choose, size: int) -> Tensor:
    """`open_crop`, from a picture's encoded bytes."""
    image = Image.open(io.BytesIO(data))  # reads the header alone, and refuses what is too large
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or orientation(image) != 1:
        return resized_crop(as_tensor(decode(image)), choose, size)
    width, height = image.size
    top, left, tall, wide = choose(height, width)
    scale = next((s for s in (8, 4, 2) if min(tall, wide) >= s * size), 1)
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))  # libjpeg leaves the finest detail out
        across, down = image.width / width, image.height / height
        box = (round(top * down), round(left * across), round(tall * down), round(wide * across))
        return resized_crop(as_tensor(image), lambda *_: box, size)
    from torchvision.io import (  # here: it takes seconds to load, and some commands never crop
        ImageReadMode,
        decode_jpeg,
    )

    with suppress(RuntimeError):  # damaged, or a kind of JPEG that only PIL knows: PIL decides
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return resized_crop(pixels, lambda *_: (top, left, tall, wide), size)
    return resized_crop(as_tensor(decode(Image.open(io.BytesIO(data)))), lambda *_: (top, left, tall, wide), size)


def resized_crop(pixels: Tensor, choose: Choose, size: int) -> Tensor:
    """A part of uint8 [3, H, W] -> uint8 [3, size, size]: bicubic, antialiased, as torchvision's v2 resizes bytes."""
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    top, left, tall, wide = choose(height, width)
    tall, wide = max(1, min(tall, height - top)), max(1, min(wide, width - left))
    part = pixels[:, top : top + tall, left : left + wide]
    if (tall, wide) == (size, size):
        return part
    return interpolate(part.unsqueeze(0), size=(size, size), mode="bicubic", antialias=True)[0]


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL picture -> uint8 [3, H, W] in channels-last memory."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
