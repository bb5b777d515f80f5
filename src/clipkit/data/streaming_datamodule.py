"""A sharded stream as a data module: training from the stream, validation and test from tables.

Run: python -m clipkit.train data=webdataset data.root=/path/to/shards data.val_root=/path/to/others
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkit.data.batches import Batch, worker_processes
from clipkit.data.datamodule import PairData
from clipkit.data.decoding import Broken
from clipkit.data.policies import PicturePolicy, Policy
from clipkit.data.records import Records
from clipkit.data.shards import Shards
from clipkit.data.stream_order import EpochPlan, Reader, StreamOrder
from clipkit.data.streaming import Request, StreamBatches, StreamDataset, StreamLoader, Tally
from clipkit.errors import UserError
from clipkit.ranks import rank, ranks

__all__ = ["StreamData"]


class StreamData(PairData):
    """`PairData` whose training pictures come from shards, in the order they are read, and are in no table.

    Order, captions and augmentation are functions of (seed, epoch, process, worker, sample): another number of workers
    gives another order. A picture's id is a hash of its shard and key, and pictures have no labels.

    Args:
        records: validation and test, may be empty.
        stream: to train on; None if there is only something to evaluate on.
        shuffle_buffer: samples among which the next one is drawn.
        resampled: draw shards with replacement.
        max_broken: allowed share of broken samples among those seen, and of broken shards among all.
        preprocess, tokenize, batch_size, augmentation, templates, memory_limit, cache_dir, seed: as in `PairData`.
        workers: processes that decode; 0 decodes in the main one.
    """

    def __init__(
        self,
        records: Records,
        *,
        stream: Shards | None,
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], dict[str, Tensor]],
        batch_size: int = 64,
        augmentation: Policy = "none",
        templates: Sequence[str] = ("a photo of a {}.",),
        max_broken: float = 0.01,
        memory_limit: float = 1024,
        workers: int = 0,
        cache_dir: str | Path | None = None,
        shuffle_buffer: int = 1000,
        resampled: bool = False,
        seed: int = 0,
    ) -> None:
        notes = list(stream.notes) if stream is not None else []
        if stream is not None and not len(records.select("val")):
            notes.append("no data.val_root: there is no validation, and each stage hands on its last weights")
        super().__init__(
            records.noting(notes),
            preprocess=preprocess,
            tokenize=tokenize,
            batch_size=batch_size,
            augmentation=augmentation,
            templates=templates,
            max_broken=max_broken,
            memory_limit=memory_limit,
            workers=workers,
            packed="none",
            cache_dir=cache_dir,
            seed=seed,
        )
        self.stream, self.shuffle_buffer, self.resampled = stream, shuffle_buffer, resampled
        shards, broken = (len(stream.paths), stream.broken) if stream is not None else (0, ())
        self.tally = Tally(max_broken, shards=shards, broken=broken)
        self._broken_in_tables: list[Broken] = []

    def count(self, split: str) -> int:
        """Pictures of a split; for "train" those of an epoch."""
        if split == "train":
            return self.stream.epoch_size if self.stream is not None else 0
        return super().count(split)

    @property
    def broken(self) -> list[Broken]:
        """What was found to be broken so far, in tables and in the stream, with the reason."""
        return [*self._broken_in_tables, *self.tally.listed]

    def find_broken(
        self, *, packed: str | None = None, on_progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[list[Broken], int]:
        """Open validation and test pictures once and drop the broken ones; the stream finds its own on the way."""
        self.tally.check()
        self._broken_in_tables, total = super().find_broken(packed=packed, on_progress=on_progress)
        return self._broken_in_tables, total

    def train_dataloader(self) -> StreamLoader:
        if self.served.batch_size % ranks():
            raise UserError(
                f"a stream's batches of {self.served.batch_size} cannot be shared evenly by {ranks()} processes: take "
                "a batch_size that they divide"
            )
        dataset = self._dataset(self.served.batch_size // ranks(), ranks())
        return StreamLoader(
            dataset,
            StreamBatches(dataset.order, rank=rank(), workers=max(1, self.workers)),
            self.tally,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **worker_processes(self.workers),
        )

    def first_captions(self, count: int) -> list[str]:
        """All captions of the first `count` samples of the first epoch; no picture is decoded."""
        return self._dataset(64, 1).captions(count)

    def first_batches(self, count: int) -> Iterator[Batch]:
        """The first `count` samples of the first epoch, or as many as it has, in batches of 64."""
        dataset = self._dataset(64, 1)
        for number in range(min(-(-count // 64), len(dataset.order.plan))):
            batch = dataset[Request(0, number, Reader())]
            report = batch.pop("report")
            if report.exhausted:
                named = [*report.shards, *report.broken][:10]
                listed = "".join(f"\n  {name}: {reason}" for name, reason in named)
                raise UserError(f"the stream's first samples cannot be used:{listed}")
            yield batch

    def _dataset(self, batch_size: int, ranks: int) -> StreamDataset:
        if self.stream is None:
            raise UserError("data.root is needed: the shards to train on, data.root=…")
        plan = EpochPlan(self.stream.epoch_size, batch_size=batch_size, ranks=ranks)
        order = StreamOrder(
            self.stream, plan, seed=self.seed, shuffle_buffer=self.shuffle_buffer, resampled=self.resampled
        )
        policy = self.augment if isinstance(self.augment, PicturePolicy) else None
        return StreamDataset(order, preprocess=self.preprocess, tokenize=self.tokenize, seed=self.seed, policy=policy)
