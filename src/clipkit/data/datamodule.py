"""A data set as a Lightning data module: its pixels, what a stage is served, and the loaders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit.data.batches import Batch, PairDataset, Served, worker_processes
from clipkit.data.captions import CaptionMode, Sentences, caption_records
from clipkit.data.checking import check_pictures
from clipkit.data.decoding import Broken, available_cores, decode_all, fits_in_memory
from clipkit.data.few_shot import choose_pictures
from clipkit.data.packing import PackedStore, find_store
from clipkit.data.pixels import Pixels
from clipkit.data.policies import PicturePolicy, Policy, augmentation_policy
from clipkit.data.randomness import uniform
from clipkit.data.records import Records
from clipkit.data.sampling import EpochBatches, ResumableLoader, as_it_is
from clipkit.data.withholding import withhold as withhold_classes
from clipkit.errors import UserError
from clipkit.ranks import first_on_each_machine, rank, ranks

__all__ = ["PairData"]


class PairData(LightningDataModule):
    """Records as batches: a dict with `image` (uint8) or `trunk`, `text` or `text_features`, `text_owner`, ids.

    Training takes one caption of each picture at random (or all of them), validation and test all. Each random choice
    is a function of (seed, epoch, image id).

    Args:
        records: of all splits.
        preprocess, tokenize: the model's own.
        batch_size: pictures a batch, where a stage does not say.
        augmentation: the name of a policy (`clipkit.data.policies`).
        templates: sentences that caption labelled pictures without captions, and name classes for zero-shot.
        captions: "random" (one of a picture's captions each epoch of training), "all" (all of them in each batch),
            "generated" (training pictures get sentences made from their class names) or "plain" (all pictures have one
            caption, the first template).
        generated: what generated captions are made of.
        shots: train on this many pictures of each class (`clipkit.data.few_shot`); None: all.
        manifest: a file that names the pictures of each split.
        split_seed: of the draw of shots, of generated captions and of withheld classes.
        withhold: classes that are left out, by name or as a share of all (`clipkit.data.withholding`); None: none.
        max_broken: allowed share of broken pictures.
        memory_limit: megabytes of decoded pixels kept in memory.
        workers: processes that decode; 0 decodes in the main one, "auto" takes as many as there are cores, up to 16.
        packed: "auto" takes training pictures from the packed store where it has them, "none" does not.
        cache_dir: holds packed stores, and which pictures were found broken.
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
        captions: CaptionMode = "random",
        generated: Sentences | None = None,
        shots: int | None = None,
        manifest: str | None = None,
        split_seed: int = 1,
        withhold: Sequence[str] | float | None = None,
        max_broken: float = 0.01,
        memory_limit: float = 1024,
        workers: int | Literal["auto"] = "auto",
        packed: Literal["auto", "none"] = "auto",
        cache_dir: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if withhold is not None:
            records, _ = withhold_classes(records, withhold, seed=split_seed)
        chosen, self.choice = choose_pictures(records, shots=shots, split_seed=split_seed, manifest=manifest)
        self.all_records = caption_records(chosen, templates, mode=captions, generated=generated, split_seed=split_seed)
        self.captions = captions
        self.templates = tuple(templates)
        self.tokenize = tokenize
        self.preprocess = preprocess
        self.batch_size, self.seed = batch_size, seed
        self.workers = min(16, available_cores()) if workers == "auto" else workers
        self.use_packed, self.cache_dir = packed == "auto", None if cache_dir is None else Path(cache_dir).expanduser()
        self.limit = limit
        self.max_broken, self.memory_limit = max_broken, memory_limit
        self.augmentation_name = augmentation
        self.augment = augmentation_policy(augmentation)
        self.served = Served(batch_size)
        self._pixels: Pixels | None = None

    @property
    def said(self) -> dict[str, Any]:
        """For `run.json`: how many pictures there are (of a stream, to validate and test), and their fingerprint."""
        return {"pictures": len(self.records), "fingerprint": self.records.fingerprint[:16]}

    def find_broken(
        self, *, packed: str | None = None, on_progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[list[Broken], int]:
        """Open every picture once and drop the broken ones.

        Small data sets stay in memory. Of larger ones it is remembered what was broken, while no picture changes.

        Args:
            packed: what `self.packed` was when the run began, if it is continued: the same store, or "none".
            on_progress: called with (what, done, total).

        Returns:
            The broken pictures with their reasons, and how many pictures there were.

        Raises:
            UserError: the packed store that the run began with is not there any more.
        """
        total, memory, threads = len(self.all_records), None, available_cores()
        if fits_in_memory(self.all_records, self.preprocess, self.memory_limit):
            records, memory, broken = decode_all(
                self.all_records, self.preprocess, threads=threads, on_progress=on_progress
            )
        else:
            cache = None if self.cache_dir is None else self.cache_dir / "checked"
            with first_on_each_machine():
                checked = check_pictures(self.all_records, cache=cache, threads=threads, on_progress=on_progress)
            records, broken = checked.readable, checked.broken
        self.all_records = records
        self._pixels = Pixels(records, self.preprocess, memory=memory)
        opened = memory is None or isinstance(self.augment, PicturePolicy)
        if opened and self.use_packed and self.cache_dir is not None and packed != "none":
            self._find_packed(self.cache_dir / "packed", packed)
        return broken, total

    def _find_packed(self, folder: Path, name: str | None) -> None:
        if name is None and not folder.is_dir():
            return
        train = self.all_records.select("train")
        if name is None:
            store, notes = find_store(folder, train.picture_hashes, size=self._source().size)
        else:
            store, notes = PackedStore(folder / name), []
        if store is not None:
            held = int((store.rows(train.picture_hashes) >= 0).sum())
            notes.append(
                f"{held:,} of {len(train):,} training pictures come from the packed store {store.place} "
                "(data.packed=none reads the pictures themselves)"
            )
            self._source().use(store)
        self.all_records = self.all_records.noting(notes)

    @property
    def packed(self) -> str:
        """The packed store that training pictures come from, by name; "none"."""
        store = None if self._pixels is None else self._pixels.packed
        return "none" if store is None else store.place.name

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

    def pixels(self, image_ids: NDArray[np.int64], *, training: bool = False) -> Tensor:
        """[B] image ids -> uint8 [B, 3, S, S], as the model's preprocessing makes them; `training`: see `Pixels`."""
        return self._source().squares(image_ids, training=training)

    def _source(self) -> Pixels:
        """Where pixels come from; before `find_broken` that is the pictures' own files."""
        if self._pixels is None:
            self._pixels = Pixels(self.all_records, self.preprocess)
        return self._pixels

    def view(self, image_ids: NDArray[np.int64], epoch: int, *, device: torch.device | None = None) -> Tensor:
        """[B] image ids -> their epoch-th view under the augmentation policy: uint8, or float 0–1 [B, 3, S, S]."""
        if isinstance(self.augment, PicturePolicy):
            draws = uniform(self.seed, epoch, image_ids, self.augment.draws, purpose="augment")
            return self._source().augmented(image_ids, self.augment, draws).to(device)
        return self.augmented(self.pixels(image_ids, training=True).to(device), image_ids, epoch)

    def augmented(self, images: Tensor, image_ids: NDArray[np.int64], epoch: int) -> Tensor:
        """A batch of squares under a policy that works on batches: its epoch-th view. uint8 in, float 0–1 out."""
        if self.augment is None or isinstance(self.augment, PicturePolicy):
            return images
        draws = uniform(self.seed, epoch, image_ids, self.augment.draws, purpose="augment")
        return self.augment(images, torch.from_numpy(draws).to(images.device, torch.float32))

    def train_dataloader(self) -> ResumableLoader:
        records = self.split("train")
        if len(records) == 0:
            raise UserError(f"{records.name} has no pictures to train on")
        self._source().prepare(self.augment)
        batches = EpochBatches(
            records.groups,
            batch_size=self.served.batch_size,
            seed=self.seed,
            together=self.served.together,
            rank=rank(),
            ranks=ranks(),
        )
        return ResumableLoader(
            PairDataset(self, records, "train"),
            batches,
            persistent_workers=self._workers("train") > 0,
            pin_memory=torch.cuda.is_available(),
            **worker_processes(self._workers("train")),
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        records = self.split("val")
        return self._ordered(records, "val") if len(records) else []

    def _ordered(self, records: Records, split: str) -> DataLoader[Batch]:
        """Every picture once, in order. Of several processes each has every so many-th batch; where there are fewer
        batches than processes, some see the last one again."""
        rows = range(len(records))
        size = min(max(self.served.batch_size, 64), max(1, len(rows) // ranks()))
        chunks = [[(0, row) for row in rows[start : start + size]] for start in range(0, len(rows), size)]
        chunks = chunks[rank() :: ranks()] or chunks[-1:]
        dataset = PairDataset(self, records, split)
        return DataLoader(
            dataset,
            batch_sampler=chunks,
            collate_fn=as_it_is,
            generator=torch.Generator(),
            **worker_processes(self._workers(split)),
        )

    def _workers(self, split: str) -> int:
        """Features, and pixels in memory that are not opened anew, need no processes."""
        in_memory = self._pixels is not None and self._pixels.memory is not None
        opened = split == "train" and isinstance(self.augment, PicturePolicy)
        return 0 if self.served.image_features is not None or (in_memory and not opened) else self.workers

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training pictures, on the device."""
        if "image" in batch and self.trainer is not None and self.trainer.training:
            ids = batch["image_id"].cpu().numpy()
            batch["image"] = self.augmented(batch["image"], ids, batch["epoch"])
        return batch
