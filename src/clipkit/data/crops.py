"""Random crops, drawn from numbers that are given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clipkit.data.opening import Box

__all__ = ["RandomCrop"]


@dataclass(frozen=True)
class RandomCrop:
    """Which part of a picture a random resized crop shows, by torchvision's rule (Szegedy et al., 2014).

    Area and shape are drawn until the part fits into the picture, ten times at most; then it is the largest part of
    the middle with a shape that is allowed.

    Args:
        scale: share of the picture's area, from … to.
        ratio: width by height, from … to; drawn evenly on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    draws: ClassVar[int] = 22

    def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
        """The part of a picture of this height and width.

        Args:
            height, width: in pixels.
            draws: 22 numbers in [0, 1): two for the place, then ten pairs of area and shape.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, shape in zip(draws[2::2], draws[3::2], strict=True):
            pixels = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
            ratio = math.exp(low + (high - low) * shape)
            wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return int((height - tall + 1) * draws[0]), int((width - wide + 1) * draws[1]), tall, wide
        wide, tall = width, height
        if width / height < self.ratio[0]:
            tall = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            wide = max(1, round(height * self.ratio[1]))
        return (height - tall) // 2, (width - wide) // 2, tall, wide
