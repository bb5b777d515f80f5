"""Batches of a sharded stream: made by workers from their own samples, broken ones replaced, resumed to the batch.

A batch is asked for by its number. The worker that makes it keeps its row of samples open for the next one, and can
begin the row anew and pass over what was used: that is all a resumed run needs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.data.decoding import DECODE_ERRORS, Broken
from clipkit.data.opening import decode_crop
from clipkit.data.policies import PicturePolicy, may_be_mirrored
from clipkit.data.randomness import uniform
from clipkit.data.sampling import EpochBatches, ResumableLoader
from clipkit.data.stream_order import Fault, Reader, StreamOrder
from clipkit.data.tar_samples import Sample, captions_of, decode_picture, picture_of, stable_hash
from clipkit.errors import UserError
from clipkit.ranks import gather

__all__ = ["StreamBatches", "StreamDataset", "StreamLoader", "Tally"]

LISTED = 1000  # broken samples that are remembered by name
IN_A_ROW = 10_000  # broken samples after which a worker gives up
JUDGED_AFTER = 100  # samples


@dataclass(frozen=True)
class Request:
    """A batch, by epoch and number, and the worker whose batch it is.

    `passed` says how many samples of its row earlier batches used, if that is known; else they are made again.
    """

    epoch: int
    number: int
    reader: Reader
    passed: int | None = None


@dataclass
class Report:
    """What became of the samples behind a batch: how many of the worker's row are used up now, and which are broken."""

    worker: int
    passed: int
    seen: int = 0
    broken: list[Broken] = field(default_factory=list)
    broken_count: int = 0
    shards: list[Broken] = field(default_factory=list)
    exhausted: bool = False


class StreamDataset(Dataset[dict[str, Any]]):
    """Whole batches at a time: `dataset.__getitems__([request])`.

    Args:
        order: of the samples.
        preprocess, tokenize: the model's own.
        seed: of the choice among several captions, and of augmentation.
        policy: what pictures go through when they are opened; None: the model's preprocessing.
    """

    def __init__(
        self,
        order: StreamOrder,
        *,
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], dict[str, Tensor]],
        seed: int,
        policy: PicturePolicy | None = None,
    ) -> None:
        self.order, self.preprocess, self.tokenize, self.seed = order, preprocess, tokenize, seed
        self.policy = policy
        self._row: Iterator[Sample | Fault] = iter(())
        self._next: tuple[int, int, Reader] | None = None  # the epoch, number and reader that the row is ready for
        self._passed = 0

    def __getitem__(self, request: Request) -> dict[str, Any]:
        return self.__getitems__([request])

    def __getitems__(self, requests: list[Request]) -> dict[str, Any]:
        """The batch of the one request, with a `report`."""
        (request,) = requests
        if self._next != (request.epoch, request.number, request.reader):
            self._begin(request)
        report = Report(request.reader.worker, 0)
        samples = self._fill(self.order.plan.size(request.number), request.epoch, report)
        self._next = (request.epoch, request.number + request.reader.workers, request.reader)
        report.passed = self._passed
        if report.exhausted:
            return {"report": report}
        captions = [caption for _, _, caption in samples]
        image_ids = torch.tensor([image_id for image_id, _, _ in samples])
        return {
            "epoch": request.epoch,
            "image_id": image_ids,
            "group": image_ids,
            "label": torch.full((len(samples),), -1),
            "caption_id": torch.tensor([stable_hash(caption) for caption in captions]),
            "text_owner": torch.arange(len(samples)),
            "text": self.tokenize(captions),
            "image": torch.stack([pixels for _, pixels, _ in samples]),
            "report": report,
        }

    def captions(self, count: int) -> list[str]:
        """All captions of the first `count` samples that have any; pictures are not decoded."""
        found: list[list[str]] = []
        for _, sample in zip(range(self.order.plan.per_rank), self.order.samples(0, Reader()), strict=False):
            if len(found) == count:
                break
            if isinstance(sample, Sample):
                with suppress(ValueError):
                    found.append(list(captions_of(sample.parts, self.order.shards.caption_key)))
        return [caption for captions in found for caption in captions]

    def _begin(self, request: Request) -> None:
        """Open the row of samples, and pass over what earlier batches used."""
        self._row = self.order.samples(request.epoch, request.reader)
        self._passed = 0
        if request.passed is not None:
            for _ in zip(range(request.passed), self._row, strict=False):
                self._passed += 1
            return
        for number in range(request.reader.worker, request.number, request.reader.workers):
            self._fill(self.order.plan.size(number), request.epoch, Report(0, 0))

    def _fill(self, size: int, epoch: int, report: Report) -> list[tuple[int, Tensor, str]]:
        """(image id, pixels, caption) of the next `size` samples that can be used."""
        samples: list[tuple[int, Tensor, str]] = []
        in_a_row = 0
        while len(samples) < size:
            if in_a_row >= IN_A_ROW or (sample := next(self._row, None)) is None:
                report.exhausted = True
                return samples
            self._passed += 1
            if isinstance(sample, Fault):
                report.shards.append((sample.shard, sample.reason))
                continue
            report.seen += 1
            try:
                captions = captions_of(sample.parts, self.order.shards.caption_key)
                pixels = self._pixels(sample, captions, epoch)
            except DECODE_ERRORS as error:
                in_a_row += 1
                report.broken_count += 1
                if len(report.broken) < LISTED:
                    report.broken.append((sample.name, str(error) or type(error).__name__))
                continue
            in_a_row = 0
            samples.append((sample.image_id, pixels, captions[self._choice(len(captions), sample.image_id, epoch)]))
        return samples

    @cached_property
    def size(self) -> int:
        """Side of the square that the model eats."""
        return int(self.preprocess(Image.new("RGB", (8, 8))).shape[-1])

    def _pixels(self, sample: Sample, captions: Sequence[str], epoch: int) -> Tensor:
        data = picture_of(sample.parts)
        if self.policy is None:
            return self.preprocess(decode_picture(data))
        draws = uniform(self.seed, epoch, np.array([sample.image_id]), self.policy.draws, purpose="augment")[0]
        mirror = not self.policy.reads_captions or all(may_be_mirrored(caption) for caption in captions)
        try:
            return self.policy(partial(decode_crop, data), self.size, draws.tolist(), mirror=mirror)
        except DECODE_ERRORS:
            decode_picture(data)  # says the same of the same damage each time
            raise

    def _choice(self, count: int, image_id: int, epoch: int) -> int:
        if count == 1:
            return 0
        return int(uniform(self.seed, epoch, np.array([image_id]), 1, purpose="caption")[0, 0] * count)


class StreamBatches(EpochBatches):
    """The requests of one process, batch after batch; workers take turns.

    Args:
        order: whose plan says how many.
        rank: of this process.
        workers: that make batches, 1 if the process does it itself.
    """

    def __init__(self, order: StreamOrder, *, rank: int, workers: int) -> None:
        super().__init__(np.empty(0, np.int64), batch_size=1, seed=order.seed)
        self.order_of_samples = order
        self.readers = [Reader(rank, order.plan.ranks, worker, workers) for worker in range(workers)]
        self.passed: dict[int, int] = {}  # samples that each worker has used up in this epoch, as far as it is known

    def __len__(self) -> int:
        return len(self.order_of_samples.plan)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        if epoch != self.epoch:
            self.passed = {}
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Request]]:  # type: ignore[override]  # requests in place of rows
        start, self.start = self.start, 0
        self.passed = self.passed if start else {}
        passed, workers = dict(self.passed), len(self.readers)
        for number in range(start, len(self)):
            reader = self.readers[number % workers]
            yield [Request(self.epoch, number, reader, passed.pop(reader.worker, None))]


class StreamLoader(ResumableLoader):
    """The training loader of a stream: it remembers its place, keeps the tally, and stops when too much is broken."""

    batches: StreamBatches

    def __init__(self, dataset: StreamDataset, batches: StreamBatches, tally: "Tally", **options: Any) -> None:
        super().__init__(dataset, batches, **options)
        self.tally = tally

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, as in the class above
        for batch in super().__iter__():
            report: Report = batch.pop("report")
            self.tally.add(report)
            self.batches.passed[report.worker] = report.passed
            yield batch
        self.tally.check(at_end=True)

    def state_dict(self) -> dict[str, Any]:
        """The places and tallies of all processes: every one of them must ask."""
        reader = self.batches.readers[0]
        own = {"passed": dict(self.batches.passed), "tally": self.tally.state()}
        return {**super().state_dict(), "readers": [reader.ranks, reader.workers], "of_ranks": gather(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        reader = self.batches.readers[0]
        known = state["readers"] == [reader.ranks, reader.workers]
        own = state["of_ranks"][reader.rank] if known else None
        # places of other readers say nothing: these make their used batches again
        self.batches.passed = dict(own["passed"]) if own is not None else {}
        if own is not None:
            self.tally.restore(own["tally"])


class Tally:
    """Counts what is broken in a stream, and stops the run when it is too much.

    Args:
        max_broken: allowed share of broken samples among those seen, and of broken shards among all.
        shards: how many there are.
        broken: shards that are known to be damaged.
    """

    def __init__(self, max_broken: float, *, shards: int, broken: tuple[Broken, ...] = ()) -> None:
        self.max_broken, self.shards = max_broken, shards
        self.seen = self.broken_count = 0
        self.broken_shards = dict(broken)
        self.broken_samples: dict[str, str] = {}

    @property
    def listed(self) -> list[Broken]:
        """Shards and samples by name, with the reason; no more than the first thousand samples."""
        return [*self.broken_shards.items(), *self.broken_samples.items()]

    def add(self, report: Report) -> None:
        """Take in what a worker reports.

        Raises:
            UserError: too much is broken.
        """
        self.seen += report.seen
        self.broken_count += report.broken_count
        self.broken_shards.update(report.shards)
        for name, reason in report.broken:
            if len(self.broken_samples) < LISTED:
                self.broken_samples[name] = reason
        self.check(at_end=report.exhausted)
        if report.exhausted:
            raise UserError(f"the stream has no more samples that can be used:\n{self._shown()}")

    def check(self, *, at_end: bool = False) -> None:
        """Raise `UserError` if too much is broken, with the first names; samples are judged after a hundred."""
        if len(self.broken_shards) > self.max_broken * self.shards:
            raise UserError(
                f"{len(self.broken_shards)} of {self.shards} shards are broken or missing, more than data.max_broken="
                f"{self.max_broken} allows:\n{self._shown()}"
            )
        if (self.seen >= JUDGED_AFTER or at_end) and self.broken_count > self.max_broken * self.seen:
            raise UserError(
                f"{self.broken_count:,} of {self.seen:,} samples are broken, more than data.max_broken="
                f"{self.max_broken} allows:\n{self._shown()}\nMore of them: broken_images.csv in the run's folder"
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "seen": self.seen,
            "broken": self.broken_count,
            "samples": dict(self.broken_samples),
            "shards": dict(self.broken_shards),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.seen, self.broken_count = state["seen"], state["broken"]
        self.broken_samples = dict(state["samples"])
        self.broken_shards |= state["shards"]

    def _shown(self) -> str:
        listed = self.listed
        more = f"\n  … and {len(listed) - 10} more" if len(listed) > 10 else ""
        return "\n".join(f"  {name}: {reason}" for name, reason in listed[:10]) + more
