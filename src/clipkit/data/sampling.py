"""The order of training: which rows stand together in which batch, as a function of (seed, epoch) alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from clipkit.data.randomness import permutation
from clipkit.errors import UserError

__all__ = ["EpochBatches", "ResumableLoader", "as_it_is"]


class EpochBatches:
    """Batches of (epoch, row): as few as `batch_size` allows, as even as possible, each row once an epoch.

    Args:
        groups: [N] integers, one a row.
        batch_size: the most rows a batch has (with `together`, a group's size more), over all processes together.
        seed: of the shuffling.
        together: keep rows of one group side by side, so that they meet in a batch.
        rank, ranks: of the processes that train together this one has number `rank`, and a share of each batch.
    """

    def __init__(
        self,
        groups: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        together: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.groups, self.batch_size, self.seed, self.together = groups, batch_size, seed, together
        self.rank, self.ranks = rank, ranks
        self.epoch = 0
        self.start = 0  # batches of this epoch that were already used (after a resume)

    def __len__(self) -> int:
        return -(-len(self.groups) // self.batch_size)

    @property
    def sampler(self) -> "EpochBatches":
        """Itself: Lightning looks for `set_epoch` at a batch sampler's sampler, and nowhere else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of one epoch."""
        rows = permutation(self.seed, epoch, len(self.groups), purpose="order")
        if self.together:
            _, first = np.unique(self.groups[rows], return_index=True)
            rank = np.empty(len(first), np.int64)
            rank[np.argsort(first)] = np.arange(len(first))  # groups in the order of their first row
            _, number = np.unique(self.groups[rows], return_inverse=True)
            rows = rows[np.argsort(rank[number], kind="stable")]
        return rows

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self.order(self.epoch)
        cuts = self._cuts(self.groups[rows])
        fewest = int(np.diff(cuts).min())
        if fewest < self.ranks:
            raise UserError(
                f"a batch of {fewest} picture{'s' if fewest > 1 else ''} cannot be shared by {self.ranks} processes: "
                "take a larger batch_size, more pictures, or fewer trainer.devices"
            )
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            share = np.array_split(rows[cuts[batch] : cuts[batch + 1]], self.ranks)[self.rank]
            yield [(self.epoch, int(row)) for row in share]

    def _cuts(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where batches begin and end in the ordered rows; with `together`, moved on to the end of a group."""
        cuts: NDArray[np.int64] = np.linspace(0, len(groups), len(self) + 1).round().astype(np.int64)
        if self.together and len(groups):
            ends = np.flatnonzero(np.append(groups[1:] != groups[:-1], True)) + 1
            moved = ends[np.searchsorted(ends, cuts[1:])]
            if len(np.unique(moved)) == len(moved):  # else a group fills a whole batch: keep the even cuts
                cuts[1:] = moved
        return cuts


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over `EpochBatches` that remembers where in the epoch it is, for checkpoints."""

    def __init__(self, dataset: Any, batches: EpochBatches, **options: Any) -> None:
        # its own generator: the loader draws a seed for workers, which must not disturb the model's random numbers
        super().__init__(dataset, batch_sampler=batches, collate_fn=as_it_is, generator=torch.Generator(), **options)
        self.batches = batches
        self._epoch: int | None = None  # the epoch that was begun, and how many of its batches were used
        self._used = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: workers start once the epoch is set
        self._epoch, self._used = self.batches.epoch, self.batches.start
        for batch in super().__iter__():
            self._used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        begun = self._epoch == self.batches.epoch
        return {"epoch": self.batches.epoch, "used": self._used if begun else self.batches.start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.epoch, self.batches.start = state["epoch"], state["used"]
        self._epoch = None


def as_it_is(batch: Any) -> Any:
    """The dataset makes whole batches: nothing is left to collate."""
    return batch
