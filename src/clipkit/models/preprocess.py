"""From a picture file to the square of pixels that an image tower eats. It travels with the tower."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ImagePreprocess"]

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImagePreprocess:
    """Resize (antialiased) and crop to a square, as the tower's own library does, to the bit.

    Args:
        size: side of the square in pixels.
        crop_share: the crop's share of the resized side; below 1 the picture is first resized larger.
        resize: "shortest" side to the square, then crop; "squash" both sides to it (SigLIP); "longest" side to it,
            then fill what is missing.
        interpolation: "bicubic" or "bilinear".
        fill: grey level around a picture resized by its longest side.
        centre: where an odd number of surplus pixels goes: "round" as torchvision, timm and open_clip crop, "floor"
            as transformers does.
    """

    size: int
    crop_share: float = 1.0
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    centre: Literal["round", "floor"] = "round"

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any mode -> uint8 [3, size, size], RGB, 0–255, not normalised (the model normalises)."""
        image = image.convert("RGB")
        width, height = self._resized(*image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), RESAMPLING[self.interpolation])
        if (width, height) != (self.size, self.size):
            left, top = self._offset(width - self.size), self._offset(height - self.size)
            if min(width, height) < self.size:
                square = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
                square.paste(image, (-left, -top))
                image = square
            else:
                image = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes this preprocessing again."""
        return asdict(self)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        side = int(self.size / self.crop_share)
        if self.resize == "squash":
            return side, side
        if self.resize == "longest":
            ratio = max(width, height) / side
            return round(width / ratio), round(height / ratio)
        short, long = sorted((width, height))
        long = int(side * long / short)
        return (side, long) if width <= height else (long, side)

    def _offset(self, surplus: int) -> int:
        if surplus < 0 and self.resize == "longest":  # open_clip halves what is missing, rounding down
            return -(-surplus // 2)
        return round(surplus / 2) if self.centre == "round" else surplus // 2
