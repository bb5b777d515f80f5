"""Batches for training and evaluation, from records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.data.captions import caption_by_templates
from clipkit.data.decoding import Broken, Decoded, decode_all
from clipkit.data.randomness import uniform
from clipkit.data.records import Records
from clipkit.data.sampling import EpochBatches, ResumableLoader, as_it_is
from clipkit.data.transforms import Policy, augmentation_policy
from clipkit.errors import UserError

__all__ = ["Batch", "PairData", "Served"]

Batch = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a stage trains on.

    Args:
        batch_size: pictures a batch.
        image_features: by split, [V, N, F]: V views of each picture, in place of pixels.
        text_features: [U, Ft], one row a distinct text of the whole data set, in place of tokens.
        together: pictures of one group stand in one batch.
    """

    batch_size: int = 64
    image_features: dict[str, NDArray[np.float32]] | None = None
    text_features: NDArray[np.float32] | None = None
    together: bool = False


class PairData(LightningDataModule):
    """Records as batches: a dict with `image` (uint8) or `trunk`, `text` or `text_features`, `text_owner`, ids.

    Training takes one caption of each picture at random, validation and test all of them. Each random choice is a
    function of (seed, epoch, image id).

    Args:
        records: of all splits.
        preprocess, tokenize: the model's own.
        batch_size: pictures a batch, where a stage does not say.
        augmentation: the name of a policy (`clipkit.data.transforms`).
        templates: sentences that caption labelled pictures without captions, and name classes for zero-shot.
        max_broken: allowed share of broken pictures.
        memory_limit: megabytes of decoded pixels kept in memory.
        workers: processes that decode; 0 decodes in the main one.
        limit: train on this many pictures, no two of one group.
        seed: of all random choices.
    """

    def __init__(
        self,
        records: Records,
        *,
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], dict[str, Tensor]],
        batch_size: int = 64,
        augmentation: Policy = "none",
        templates: Sequence[str] = ("a photo of a {}.",),
        max_broken: float = 0.01,
        memory_limit: float = 1024,
        workers: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.all_records = caption_by_templates(records, templates)
        self.templates = tuple(templates)
        self.tokenize = tokenize
        self.preprocess = preprocess
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.limit = limit
        self.max_broken, self.memory_limit = max_broken, memory_limit
        self.augmentation_name = augmentation
        self.augment = augmentation_policy(augmentation)
        self.served = Served(batch_size)
        self.decoded: Decoded | None = None

    def find_broken(self) -> tuple[list[Broken], int]:
        """Decode every picture once and drop the broken ones; returns them and how many pictures there were."""
        total = len(self.all_records)
        self.decoded, broken = decode_all(self.all_records, self.preprocess, memory_limit=self.memory_limit)
        self.all_records = self.decoded.records
        return broken, total

    @property
    def records(self) -> Records:
        """All readable records."""
        return self.all_records

    def split(self, name: str) -> Records:
        """The records of "train", "val" or "test"."""
        records = self.all_records.select(name)
        return records if self.limit is None or name != "train" else records.one_per_group(self.limit)

    def count(self, split: str) -> int:
        """Pictures of a split."""
        return len(self.split(split))

    def serve(self, served: Served) -> None:
        """Set what the next stage trains on."""
        self.served = served

    def pixels(self, image_ids: NDArray[np.int64]) -> Tensor:
        """[B] image ids -> uint8 [B, 3, S, S]."""
        if self.decoded is None:
            self.decoded = Decoded(self.all_records, self.preprocess, None)
        return self.decoded(image_ids)

    def augmented(self, images: Tensor, image_ids: NDArray[np.int64], epoch: int) -> Tensor:
        """A batch under the augmentation policy: its epoch-th view. uint8 in, float 0–1 or uint8 out."""
        if self.augment is None:
            return images
        draws = uniform(self.seed, epoch, image_ids, self.augment.draws, purpose="augment")
        return self.augment(images, torch.from_numpy(draws).to(images.device, torch.float32))

    def train_dataloader(self) -> ResumableLoader:
        records = self.split("train")
        if len(records) == 0:
            raise UserError(f"{records.name} has no pictures to train on")
        batches = EpochBatches(
            records.groups, batch_size=self.served.batch_size, seed=self.seed, together=self.served.together
        )
        return ResumableLoader(
            PairDataset(self, records, "train"),
            batches,
            num_workers=self._workers(),
            persistent_workers=self._workers() > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        records = self.split("val")
        return self._ordered(records, "val") if len(records) else []

    def _ordered(self, records: Records, split: str) -> DataLoader[Batch]:
        rows = range(len(records))
        size = max(self.served.batch_size, 64)
        chunks = [[(0, row) for row in rows[start : start + size]] for start in range(0, len(rows), size)]
        dataset = PairDataset(self, records, split)
        return DataLoader(
            dataset, batch_sampler=chunks, collate_fn=as_it_is, generator=torch.Generator(), num_workers=self._workers()
        )

    def _workers(self) -> int:
        """Features and pixels in memory need no processes."""
        in_memory = self.served.image_features is not None or (self.decoded and self.decoded.pixels is not None)
        return 0 if in_memory else self.workers

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training pictures, on the device."""
        if "image" in batch and self.trainer is not None and self.trainer.training:
            ids = batch["image_id"].cpu().numpy()
            batch["image"] = self.augmented(batch["image"], ids, batch["epoch"])
        return batch


class PairDataset(Dataset[Batch]):
    """Whole batches at a time: `dataset.__getitems__([(epoch, row), …])`."""

    def __init__(self, data: PairData, records: Records, split: str) -> None:
        self.data, self.records, self.split, self.served = data, records, split, data.served
        _, self.text_of_caption = records.caption_texts
        self.texts = records.caption_texts[0]
        self.text_rows = data.records.text_rows(records) if self.served.text_features is not None else None

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        epoch = items[0][0]
        rows = np.array([row for _, row in items])
        image_ids = self.records.image_ids[rows]
        captions, owner = self._captions(rows, image_ids, epoch)
        batch: Batch = {
            "epoch": epoch,
            "image_id": torch.from_numpy(image_ids),
            "group": torch.from_numpy(self.records.groups[rows]),
            "label": torch.from_numpy(self.records.labels[rows]),
            "text_owner": torch.from_numpy(owner),
            "caption_id": torch.from_numpy(captions),
        }
        text = self.text_of_caption[captions]
        if self.served.text_features is not None and self.text_rows is not None:
            batch["text_features"] = torch.from_numpy(self.served.text_features[self.text_rows[text]])
        else:
            batch["text"] = self.data.tokenize([self.texts[int(index)].as_py() for index in text])
        if self.served.image_features is not None:
            batch["trunk"] = {"feature": self._views(rows, image_ids, epoch)}
        else:
            batch["image"] = self.data.pixels(image_ids)
        return batch

    def _captions(
        self, rows: NDArray[np.int64], image_ids: NDArray[np.int64], epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The captions of these rows, and for each the place in the batch of its picture."""
        first, last = self.records.caption_offsets[rows], self.records.caption_offsets[rows + 1]
        if self.split == "train":
            choice = uniform(self.data.seed, epoch, image_ids, 1, purpose="caption")[:, 0]
            return first + (choice * (last - first)).astype(np.int64), np.arange(len(rows))
        owner = np.repeat(np.arange(len(rows)), last - first)
        return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]), owner

    def _views(self, rows: NDArray[np.int64], image_ids: NDArray[np.int64], epoch: int) -> Tensor:
        assert self.served.image_features is not None
        features = self.served.image_features[self.split]  # [V, N, F]
        view = np.zeros(len(rows), np.int64)
        if self.split == "train" and len(features) > 1:
            view = (uniform(self.data.seed, epoch, image_ids, 1, purpose="view")[:, 0] * len(features)).astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(features[view, rows]))
