"""Rows that are spread over the processes that train together, joined, with the gradient brought back."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.ranks import counts_of_all

__all__ = ["Shares", "gather_rows"]


@dataclass(frozen=True)
class Shares:
    """How many rows each process of a group has; joined rows stand in the processes' order.

    Args:
        counts: by process.
        group: the processes; None is this one alone.
    """

    counts: tuple[int, ...]
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, rows: Tensor, group: dist.ProcessGroup | None) -> "Shares":
        """Ask every process of the group how many rows it has (each has to call this)."""
        if group is None:
            return cls((len(rows),))
        return cls(counts_of_all(len(rows), group), group)

    @property
    def total(self) -> int:
        """Rows of all processes."""
        return sum(self.counts)

    @property
    def own(self) -> slice:
        """Where this process's rows stand among the joined ones."""
        place = 0 if self.group is None else dist.get_rank(self.group)
        start = sum(self.counts[:place])
        return slice(start, start + self.counts[place])

    def join(self, rows: Tensor) -> Tensor:
        """[n, …] of each process -> [total, …], without gradient; the rows themselves where there is one process."""
        rows = rows.detach()
        if self.group is None:
            return rows
        longest = max(self.counts)
        padded = rows.contiguous()
        if len(rows) < longest:  # gathering takes equal shapes only
            padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def gather(self, rows: Tensor) -> Tensor:
        """`join`, with gradient: see `gather_rows`."""
        if self.group is None:
            return rows
        joined: Tensor = _GatherRows.apply(rows, self)
        return joined

    def sum_of_own(self, joined: Tensor) -> Tensor:
        """[total, …], a part of the sum on each process -> this process's rows [n, …] of the sum.

        Overwrites its input.
        """
        if self.group is not None:
            dist.all_reduce(joined, group=self.group)
        return joined[self.own]


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in their order, with gradient.

    Each process's rows get the sum of the gradients that all processes have for them. A loss that every process
    computes from gathered rows therefore has W times its gradient in the rows, and parameters have exactly its gradient
    once their gradients are averaged over the W processes, as DistributedDataParallel does.

    Args:
        rows: [n, …], n may differ between processes.
        group: the processes; None is this one alone.

    Returns:
        [sum of n, …].
    """
    return Shares.of(rows, group).gather(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Shares) -> Tensor:
        ctx.shares = shares
        return shares.join(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.shares.sum_of_own(grad.clone(memory_format=torch.contiguous_format)), None
