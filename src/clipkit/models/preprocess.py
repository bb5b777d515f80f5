"""From a picture file to the square of pixels that an image tower eats. It travels with the tower."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ImagePreprocess"]


@dataclass(frozen=True)
class ImagePreprocess:
    """Resize the shorter side (bicubic, antialiased), crop the centre.

    Args:
        size: side of the square in pixels.
        crop_share: the crop's share of the resized side; below 1 the picture is first resized larger.
    """

    size: int
    crop_share: float = 1.0

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any mode -> uint8 [3, size, size], RGB, 0–255, not normalised (the model normalises)."""
        image = image.convert("RGB")
        side = round(self.size / self.crop_share)
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
