"""CLAHE: contrast that is evened out place by place, as a transform of torchvision's kind.

Source: Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

__all__ = ["Clahe", "clahe"]


class Clahe(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """`clahe` of the brightness; colours keep their hue.

    Args:
        clip: limit of a histogram's bins, in multiples of their mean.
        tiles: along each side.
    """

    def __init__(self, clip: float = 4.0, tiles: int = 8) -> None:
        super().__init__()
        self.clip, self.tiles = clip, tiles

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        weights = inpt.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)  # ITU-R BT.601
        grey = torch.einsum("chw,c->hw", inpt.float(), weights)
        even = clahe(grey.round().to(torch.uint8), clip=self.clip, tiles=self.tiles)
        return (inpt.float() + (even.float() - grey)).round().clamp(0, 255).to(torch.uint8)


def clahe(grey: Tensor, *, clip: float, tiles: int) -> Tensor:
    """uint8 [H, W] -> uint8 [H, W]: each tile's histogram is clipped, the surplus spread evenly, and equalised; between
    the centres of tiles the four nearest results are mixed."""
    height, width = grey.shape
    down, right = -height % tiles, -width % tiles
    padded = pad(grey[None, None].float(), (0, right, 0, down), mode="replicate")[0, 0].long()
    tall, wide = padded.shape[0] // tiles, padded.shape[1] // tiles
    cells = padded.view(tiles, tall, tiles, wide).permute(0, 2, 1, 3).reshape(tiles * tiles, -1)  # [T², pixels]
    counts = torch.zeros(tiles * tiles, 256).scatter_add_(1, cells, torch.ones(cells.shape))
    limit = max(1, int(clip * cells.shape[1] / 256))
    surplus = (counts - limit).clamp(min=0).sum(1, keepdim=True)
    each, rest = surplus // 256, surplus % 256
    step = (256 // rest.clamp(min=1)).clamp(min=1)  # the rest goes one by one to bins that lie equally far apart
    bins = torch.arange(256)
    extra = ((bins % step == 0) & (bins // step < rest)).float()
    tables = ((counts.clamp(max=limit) + each + extra).cumsum(1) * (255 / cells.shape[1])).round().clamp(0, 255)
    up, lower, y = _neighbours(height, tall, tiles)
    left, other, x = _neighbours(width, wide, tiles)
    values = grey.long()

    def seen_by(row: Tensor, column: Tensor) -> Tensor:
        return tables[(row[:, None] * tiles + column[None, :]), values]

    top = seen_by(up, left) * (1 - x) + seen_by(up, other) * x
    bottom = seen_by(lower, left) * (1 - x) + seen_by(lower, other) * x
    return (top * (1 - y[:, None]) + bottom * y[:, None]).round().clamp(0, 255).to(torch.uint8)


def _neighbours(length: int, tile: int, tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each place along a side: the tile before, the tile after, and the share of the latter."""
    place = torch.arange(length) / tile - 0.5
    before = place.floor()
    share = place - before
    return before.clamp(0, tiles - 1).long(), (before + 1).clamp(0, tiles - 1).long(), share
