"""What the losses that work tile by tile share: the logits [B, M] exist one square at a time, never as a whole."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["DENSE_LIMIT", "Chunks", "LogSumExp", "at_least_float32", "side_of_tiles", "sum_by_number", "tiles"]

Chunks = int | Literal["auto"] | None
DENSE_LIMIT = 2**22  # logits (B·M, of all processes) up to which "auto" writes them all out: 16 MB a matrix in float32


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in one number type, float32 or float64: logits reach 100, and bfloat16 keeps 8 bits of them."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors[:2]) else torch.float32
    return tuple(x.to(dtype) for x in tensors)


def side_of_tiles(chunk_size: Chunks, rows: int, columns: int, device: torch.device) -> int | None:
    """The side of a tile; None for the dense formula. See `contrastive_loss`."""
    if isinstance(chunk_size, int) and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if chunk_size != "auto":
        return chunk_size
    if rows * columns <= DENSE_LIMIT:
        return None
    return 512 if device.type == "cpu" else 4096  # a processor's caches; enough work for each kernel of a GPU


def tiles(rows: int, columns: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Squares that cover [rows, columns], row by row; those at the ends are smaller."""
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            yield slice(top, min(top + side, rows)), slice(left, min(left + side, columns))


def sum_by_number(values: Tensor, number: Tensor, count: int) -> Tensor:
    """[N, D] -> [count, D], the sum of the rows that have each number."""
    return values.new_zeros(count, values.shape[1]).index_add_(0, number, values)


class LogSumExp:
    """log Σ exp of scores that arrive tile by tile, and, where values come with them, their softmax-weighted mean."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.top = like.new_full((count,), -torch.inf)  # the largest score so far: it is always subtracted
        self.total = like.new_zeros(count)
        self.weighted = like.new_zeros(count)

    def add(self, at: slice, scores: Tensor, *, dim: int, values: Tensor | None = None) -> None:
        """Take in a tile's scores along `dim`, for the rows (or columns) `at`."""
        top = torch.maximum(self.top[at], scores.amax(dim))
        weights = (scores - top.unsqueeze(dim)).exp_()
        kept = (self.top[at] - top).exp_()
        self.top[at] = top
        self.total[at] = self.total[at] * kept + weights.sum(dim)
        if values is not None:
            self.weighted[at] = self.weighted[at] * kept + weights.mul_(values).sum(dim)

    def join(self, group: dist.ProcessGroup | None) -> None:
        """Over the scores of all processes."""
        if group is None:
            return
        top = self.top.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        parts = torch.stack([self.total, self.weighted]) * (self.top - top).exp()
        dist.all_reduce(parts, group=group)
        self.top, self.total, self.weighted = top, parts[0], parts[1]

    def value(self) -> Tensor:
        """[count] log Σ exp(score)."""
        return self.top + self.total.log()

    def mean(self) -> Tensor:
        """[count] Σ softmax(score) · value."""
        return self.weighted / self.total
