"""The policy `affine_color`: batched, on the model's device, drawn from numbers given per sample.

Run: python -m clipkit.train data.augmentation=affine_color
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

__all__ = ["AffineColor"]


@dataclass(frozen=True)
class AffineColor:
    """One affine warp (edges repeated beyond the border), then hue, saturation, contrast and brightness.

    Each strength x means: drawn evenly from −x … +x, or a factor from 1 − x … 1 + x.

    Args:
        degrees: rotation. shear: slant, as a share of the height.
        translate: shift, as a share of the side.
        zoom, stretch: change of size and of width against height, as exponents (0.2: a factor of e^±0.2).
        hue: turn of the colours, as a share of the full circle.
        saturation, contrast: factors. brightness: what is added, with white at 1.
        grey: share of pictures that lose their colour. flip: share mirrored left to right; set it to 0 where captions
            say left or right.
    """

    degrees: float = 15
    shear: float = 0.1
    translate: float = 0.05
    zoom: float = 0.25
    stretch: float = 0.1
    hue: float = 0.05
    saturation: float = 0.4
    contrast: float = 0.3
    brightness: float = 0.1
    grey: float = 0.1
    flip: float = 0.5

    draws: ClassVar[int] = 12

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 or float 0–1, with [B, 12] numbers in [0, 1) -> float 0–1 [B, 3, S, S]."""
        x = images if images.is_floating_point() else images.float() / 255
        draws = draws.to(x.dtype)
        return self._colour(self._warp(x, draws), draws)

    def _warp(self, x: Tensor, draws: Tensor) -> Tensor:
        """Sample the picture where rotation · shear · scale (and a shift) of each output place points."""
        around = 2 * draws - 1  # [-1, 1)
        angle, slant = math.radians(self.degrees) * around[:, 0], self.shear * around[:, 1]
        zoom, stretch = (-self.zoom * around[:, 2]).exp(), (self.stretch * around[:, 6]).exp()
        across = torch.where(draws[:, 3] < self.flip, -1.0, 1.0).to(x.dtype) * zoom * stretch
        down = zoom / stretch
        cos, sin = angle.cos(), angle.sin()
        shift = 2 * self.translate * around[:, 4:6]  # the grid runs from −1 to 1
        rows = [
            cos * across,
            (cos * slant - sin) * down,
            shift[:, 0],
            sin * across,
            (sin * slant + cos) * down,
            shift[:, 1],
        ]
        grid = affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _colour(self, x: Tensor, draws: Tensor) -> Tensor:
        """One linear map of RGB per picture: turn about the grey axis, fade towards it, stretch about mid-grey."""
        around = (2 * draws - 1)[:, :, None, None]  # [B, 12, 1, 1]
        turn = 2 * math.pi * self.hue * around[:, 10]
        fade = torch.where(draws[:, 11, None, None] < self.grey, 0.0, 1 + self.saturation * around[:, 9]).to(x.dtype)
        contrast = 1 + self.contrast * around[:, 8]
        grey = x.new_full((3, 3), 1 / 3)
        cross = x.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
        identity = torch.eye(3, device=x.device, dtype=x.dtype)
        rotation = turn.cos() * identity + (1 - turn.cos()) * grey + turn.sin() * cross  # Rodrigues' formula
        colour = contrast * (grey + fade * (rotation - grey))  # [B, 3, 3]
        mapped = torch.einsum("bij,bjhw->bihw", colour, x - 0.5)
        return (mapped + (0.5 + self.brightness * around[:, 7]).unsqueeze(-1)).clamp_(0, 1)
