"""Which samples of a sharded stream each reader gets, and in which order: a function of (seed, epoch, reader) alone.

A reader is one worker of one process. All shards in their order make a line of places, and each reader has a piece of
it: whole shards, and parts of those at its ends. So nobody goes without, even with one shard for many readers, and
together they see every sample once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipkit.data.randomness import permutation, uniform
from clipkit.data.shards import Shards, is_remote, open_shard, reason_of
from clipkit.data.tar_samples import DamagedTar, Sample, Tar, read_samples

__all__ = ["EpochPlan", "Fault", "Reader", "StreamOrder"]

ATTEMPTS = 3  # at reading on in a remote shard, without a single sample in between
DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class Fault:
    """A shard that cannot be read, or not to its end."""

    shard: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """One of the workers (0 … workers − 1) of one of the processes (0 … ranks − 1)."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def number(self) -> int:
        return self.rank * self.workers + self.worker


class EpochPlan:
    """How an epoch is cut into batches: as many and as large in every process, as even as possible.

    Args:
        epoch_size: samples over all processes; if they do not divide evenly, a few are seen twice.
        batch_size: the most samples of a batch.
        ranks: processes.
    """

    def __init__(self, epoch_size: int, *, batch_size: int, ranks: int = 1) -> None:
        self.ranks = ranks
        self.per_rank = -(-epoch_size // ranks)
        count = -(-self.per_rank // batch_size)
        self._cuts: NDArray[np.int64] = np.linspace(0, self.per_rank, count + 1).round().astype(np.int64)

    def __len__(self) -> int:
        """Batches of each process."""
        return len(self._cuts) - 1

    def size(self, batch: int) -> int:
        """Samples of a batch."""
        return int(self._cuts[batch + 1] - self._cuts[batch])

    def piece(self, reader: Reader) -> tuple[int, int]:
        """The samples of an epoch that are a reader's, from and to, where 0 … ranks · per_rank stands for all.

        Batch b is made by worker b mod workers, so some workers make more of them.
        """
        sizes = np.diff(self._cuts)
        own = [int(sizes[worker :: reader.workers].sum()) for worker in range(reader.workers)]
        start = reader.rank * self.per_rank + sum(own[: reader.worker])
        return start, start + own[reader.worker]


@dataclass(frozen=True)
class StreamOrder:
    """The endless row of a reader's samples in one epoch.

    Args:
        shards: the data set.
        plan: of the epochs.
        seed: of the order.
        shuffle_buffer: samples among which the next one is drawn.
        resampled: draw shards with replacement; else each epoch takes what the one before has left.
        patience: seconds before a remote shard is tried again.
    """

    shards: Shards
    plan: EpochPlan
    seed: int = 0
    shuffle_buffer: int = 1000
    resampled: bool = False
    patience: float = 1.0

    def samples(self, epoch: int, reader: Reader) -> Iterator[Sample | Fault]:
        """The samples of one reader, shuffled; after its piece of the data set it begins anew, in another order.

        Ends only when a whole turn brings no sample.
        """
        turn = 0
        while True:
            some = False
            row = self._drawn(epoch, turn, reader) if self.resampled else self._piece(epoch, turn, reader)
            for sample in self._shuffled(row, epoch, turn, reader):
                some = some or isinstance(sample, Sample)
                yield sample
            if not some:
                return
            turn += 1

    def _piece(self, epoch: int, turn: int, reader: Reader) -> Iterator[Sample | Fault]:
        """The reader's piece of the line of places.

        Counted shards have as many places as samples. Others count alike: each has a place a reader, and its i-th
        sample stands at place i mod readers. An epoch shorter than the data set is one of several that share a turn.
        """
        counts, readers = self.shards.counts, reader.ranks * reader.workers
        widths = np.array(counts if counts is not None else [readers] * len(self.shards.paths), np.int64)
        whole, total = int(widths.sum()), self.plan.ranks * self.plan.per_rank
        if counts is not None:
            parts = max(1, whole // total)
            epoch, part = divmod(epoch, parts)
            first, last = (whole * (part * total + place) // (parts * total) for place in self.plan.piece(reader))
        else:
            first, last = reader.number * len(widths), (reader.number + 1) * len(widths)
        last = max(last, first + 1)
        order = permutation(self.seed, epoch, len(widths), purpose=f"shards, turn {turn}")
        ends = np.cumsum(widths[order])
        for index in range(int(np.searchsorted(ends, first, side="right")), len(order)):
            shard = int(order[index])
            width = int(widths[shard])
            begin = int(ends[index]) - width
            if begin >= last:
                return
            held = Part(max(first - begin, 0), min(last - begin, width), of=None if counts is not None else readers)
            if width:
                yield from self._read(shard, held)

    def _drawn(self, epoch: int, turn: int, reader: Reader) -> Iterator[Sample | Fault]:
        """Shards with replacement; of the first one only the end, so that short epochs see all of it in time."""
        count = len(self.shards.paths)
        draws = uniform(
            self.seed, epoch, np.array([(reader.number << 32) + turn]), count + 1, purpose="shards drawn"
        )[0]  # fmt: skip
        for place, draw in enumerate(draws[1:]):
            shard = int(draw * count)
            known = self.shards.counts[shard] if self.shards.counts is not None else 0
            first = int(draws[0] * known) if place == turn == 0 else 0
            yield from self._read(shard, Part(first))

    def _shuffled(
        self, row: Iterator[Sample | Fault], epoch: int, turn: int, reader: Reader
    ) -> Iterator[Sample | Fault]:
        """Each next sample is drawn from a buffer, whose gap the following one fills."""
        if self.shuffle_buffer <= 1:
            yield from row
            return
        buffer: list[Sample | Fault] = []
        draws = self._draws(epoch, turn, reader)
        for sample in row:
            if len(buffer) < self.shuffle_buffer:
                buffer.append(sample)
                continue
            place = int(next(draws) * len(buffer))
            drawn, buffer[place] = buffer[place], sample
            yield drawn
        while buffer:
            place = int(next(draws) * len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()

    def _draws(self, epoch: int, turn: int, reader: Reader) -> Iterator[float]:
        begun = reader.number << 40
        while True:
            ids = np.arange(begun, begun + DRAWN_AT_ONCE)
            yield from uniform(self.seed, epoch, ids, 1, purpose=f"shuffle, turn {turn}")[:, 0].tolist()
            begun += DRAWN_AT_ONCE

    def _read(self, shard: int, part: "Part") -> Iterator[Sample | Fault]:
        """A shard's samples; where the connection fails, from the sample on where it did; a `Fault` in the end."""
        path, name = self.shards.paths[shard], self.shards.names[shard]
        attempts = 0
        while True:
            try:
                with open_shard(path) as file:
                    for sample in read_samples(
                        Tar(file, seeks=not is_remote(path)), name, wanted=part.holds, stop=part.stop
                    ):
                        part = replace(part, after=sample.number)
                        attempts = 0
                        yield sample
                return
            except OSError as error:
                attempts += 1
                if not is_remote(path) or isinstance(error, FileNotFoundError) or attempts >= ATTEMPTS:
                    yield Fault(name, reason_of(error))
                    return
                time.sleep(0.0 if isinstance(error, DamagedTar) else self.patience * attempts)


@dataclass(frozen=True)
class Part:
    """Which samples of a shard, by their number: low … high − 1, or those whose rest in division by `of` is there."""

    low: int = 0
    high: int | None = None
    of: int | None = None
    after: int = -1  # what was already read, before the connection failed

    def holds(self, number: int) -> bool:
        place = number if self.of is None else number % self.of
        return number > self.after and self.low <= place and (self.high is None or place < self.high)

    @property
    def stop(self) -> int | None:
        """The first number from which on no sample is wanted."""
        return self.high if self.of is None else None
