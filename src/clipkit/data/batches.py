"""Batches for training and evaluation: a dict with pictures (or stored features), texts, and whose they are."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.data.policies import PicturePolicy
from clipkit.data.randomness import uniform
from clipkit.data.records import Records

if TYPE_CHECKING:
    from clipkit.data.datamodule import PairData

__all__ = ["Batch", "PairDataset", "Served", "worker_processes"]

Batch = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a stage trains on.

    Args:
        batch_size: pictures a batch.
        image_features: by split and name, [V, N, …]: what the image tower's frozen half says of V views of each
            picture, in place of pixels.
        text_features: [U, Ft], one row a distinct text of the whole data set, in place of tokens.
        together: pictures of one group stand in one batch.
        texts: whether batches have captions at all.
    """

    batch_size: int = 64
    image_features: dict[str, dict[str, NDArray[np.float32]]] | None = None
    text_features: NDArray[np.float32] | None = None
    together: bool = False
    texts: bool = True


class PairDataset(Dataset[Batch]):
    """Whole batches at a time: `dataset.__getitems__([(epoch, row), …])`."""

    def __init__(self, data: "PairData", records: Records, split: str) -> None:
        self.data, self.records, self.split, self.served = data, records, split, data.served
        # made here, not on first use: worker processes then share these columns
        self.columns = (records.image_ids, records.groups, records.labels, records.caption_offsets)
        _, self.text_of_caption = records.caption_texts
        self.texts = records.caption_texts[0]
        self.text_rows = data.records.text_rows(records) if self.served.text_features is not None else None

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        epoch = items[0][0]
        rows = np.array([row for _, row in items])
        image_ids = self.records.image_ids[rows]
        batch: Batch = {
            "epoch": epoch,
            "image_id": torch.from_numpy(image_ids),
            "group": torch.from_numpy(self.records.groups[rows]),
            "label": torch.from_numpy(self.records.labels[rows]),
        }
        if self.served.texts:
            batch |= self._texts(rows, image_ids, epoch)
        if self.served.image_features is not None:
            batch["trunk"] = self._views(rows, image_ids, epoch)
        elif self.split == "train" and isinstance(self.data.augment, PicturePolicy):
            batch["image"] = self.data.view(image_ids, epoch)
        else:
            batch["image"] = self.data.pixels(image_ids, training=self.split == "train")
        return batch

    def _texts(self, rows: NDArray[np.int64], image_ids: NDArray[np.int64], epoch: int) -> Batch:
        """The captions of these rows: tokens or stored features, and whose they are."""
        captions, owner = self._captions(rows, image_ids, epoch)
        found: Batch = {"text_owner": torch.from_numpy(owner), "caption_id": torch.from_numpy(captions)}
        text = self.text_of_caption[captions]
        if self.served.text_features is not None and self.text_rows is not None:
            found["text_features"] = torch.from_numpy(self.served.text_features[self.text_rows[text]])
        else:
            found["text"] = self.data.tokenize([self.texts[int(index)].as_py() for index in text])
        return found

    def _captions(
        self, rows: NDArray[np.int64], image_ids: NDArray[np.int64], epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The captions of these rows, and for each the place in the batch of its picture."""
        first, last = self.records.caption_offsets[rows], self.records.caption_offsets[rows + 1]
        if self.split == "train" and self.data.captions != "all":
            choice = uniform(self.data.seed, epoch, image_ids, 1, purpose="caption")[:, 0]
            return first + (choice * (last - first)).astype(np.int64), np.arange(len(rows))
        owner = np.repeat(np.arange(len(rows)), last - first)
        return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]), owner

    def _views(self, rows: NDArray[np.int64], image_ids: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        assert self.served.image_features is not None
        stored = self.served.image_features[self.split]  # each [V, N, …]
        views = len(next(iter(stored.values())))
        view = np.zeros(len(rows), np.int64)
        if self.split == "train" and views > 1:
            view = (uniform(self.data.seed, epoch, image_ids, 1, purpose="view")[:, 0] * views).astype(np.int64)
        return {name: torch.from_numpy(np.ascontiguousarray(array[view, rows])) for name, array in stored.items()}


def worker_processes(count: int) -> dict[str, Any]:
    """A loader's arguments for this many workers. Forked ones share the table of records, others would copy it."""
    fork = count > 0 and "fork" in multiprocessing.get_all_start_methods()
    return {"num_workers": count, "multiprocessing_context": "fork" if fork else None}
