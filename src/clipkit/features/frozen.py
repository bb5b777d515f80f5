"""What the frozen towers say of the data, computed once and kept on disk."""

import json
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.datamodule import PairData
from clipkit.data.images import fingerprint
from clipkit.data.records import Records
from clipkit.data.streaming_datamodule import StreamData
from clipkit.features.store import FeatureStore, tensors_fingerprint
from clipkit.models.dual_encoder import DualEncoder
from clipkit.ranks import first_on_each_machine

__all__ = ["FrozenFeatures"]

Kept = TypeVar("Kept")


class FrozenFeatures:
    """Raw image features (several augmented views) and text features of a data set, through the store.

    Args:
        encoder: whose towers are run.
        data: pictures and captions.
        store: where the arrays are kept.
        batch_size: pictures run at a time.
        on_progress: called with (what, done, total) while something is computed.
        keep: hold in memory what is asked for, too: for many heads on the same pictures, of an encoder that nothing
            trains meanwhile.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        data: PairData,
        store: FeatureStore,
        *,
        batch_size: int = 64,
        on_progress: Callable[[str, int, int], None] | None = None,
        keep: bool = False,
    ) -> None:
        self._kept: dict[Hashable, Any] | None = {} if keep else None
        self.encoder, self.data, self.store, self.batch_size = encoder, data, store, batch_size
        self.on_progress = on_progress or (lambda what, done, total: None)

    def image(self, split: str, *, views: int = 1) -> NDArray[np.float32]:
        """[views, N, F] features of the image tower, not standardised; view 0 is the picture as it is."""
        return self.trunk(split, views=views)["feature"]

    def once(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `make` gives; where things are kept, what it gave the first time. It must not be changed."""
        if self._kept is None:
            return make()
        if key not in self._kept:
            self._kept[key] = make()
        kept: Kept = self._kept[key]
        return kept

    def image_of(self, part: Records) -> Tensor:
        """[N, F] of some pictures, as `image` gives them: from the splits' own entries."""
        key = ("image_of", part.image_ids.tobytes(), self.encoder.frozen_dtype)
        return self.once(key, lambda: self._image_of(part))

    def _image_of(self, part: Records) -> Tensor:
        found = torch.empty(len(part), self.encoder.feature_dim)
        splits = np.asarray(part.table["split"].to_pylist())
        for split in dict.fromkeys(splits):
            whole, mask = self.data.split(split).image_ids, splits == split
            order = np.argsort(whole, kind="stable")
            rows = order[np.searchsorted(whole, part.image_ids[mask], sorter=order)]
            found[torch.from_numpy(mask)] = torch.from_numpy(self.image(split)[0][rows])
        return found

    def trunk(
        self, split: str, *, views: int = 1, groups: int = 0, end: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """What the frozen half of the image tower hands on, of every picture: by name [views, N, …].

        Args:
            split: "train", "val" or "test".
            views: how often each picture is encoded; view 0 is the picture as it is, the others are augmented.
            groups, end: where the tail begins (`ImageTower.trunk`). The trained half's weights are no part of the key.
        """
        records, encoder = self.data.split(split), self.encoder
        key = {
            "what": "image",
            "weights": tensors_fingerprint(encoder.image.frozen_state(groups=groups, end=end)),
            "tower": json.dumps({**encoder.image.spec("inside"), "standardize": None}, sort_keys=True),
            "dtype": str(encoder.frozen_dtype),
            "computed_by": self._computed_by(),
            "records": records.fingerprint,
            "image_ids": records.image_ids.tolist(),
            "policy": [self.data.augmentation_name, repr(self.data.augment), self.data.seed] if views > 1 else None,
            **({"packed": self.data.packed} if views > 1 and self.data.packed != "none" else {}),
            **({"groups": [groups, end]} if groups or end else {}),
        }
        total = views * len(records)

        def encode() -> Iterator[dict[str, NDArray[np.float32]]]:
            done = 0
            for view in range(views):
                for start in range(0, len(records), self.batch_size):
                    ids = records.image_ids[start : start + self.batch_size]
                    pixels = self.data.view(ids, view, device=self._device) if view else self.data.pixels(ids)
                    state = encoder.trunk(pixels.to(self._device), groups=groups, end=end)
                    yield {name: value.float().cpu().numpy() for name, value in state.items()}
                    done += len(ids)
                    self.on_progress(f"image features of {split}", done, total)

        shapes = self._trunk_shapes(groups, end)
        with self._evaluating(), first_on_each_machine():
            return self.store.get_all(key, (views, len(records)), shapes, encode)

    def trunk_bytes(self, *, groups: int = 0, end: bool = False) -> int:
        """Bytes that one view of one picture takes."""
        return 4 * sum(int(np.prod(shape)) for shape in self._trunk_shapes(groups, end).values())

    def _trunk_shapes(self, groups: int, end: bool) -> dict[str, tuple[int, ...]]:
        if groups == 0 and not end:
            return {"feature": (self.encoder.feature_dim,)}
        size = self.encoder.preprocess.size
        with self._evaluating():
            state = self.encoder.trunk(torch.zeros(1, 3, size, size, device=self._device), groups=groups, end=end)
        return {name: tuple(value.shape[1:]) for name, value in state.items()}

    def text(self) -> NDArray[np.float32]:
        """[U, Ft] features of the text tower, not standardised, for the distinct captions of the whole data set."""
        return self.text_of(self.data.records.caption_texts[0])

    def text_of(self, texts: pa.Array) -> NDArray[np.float32]:
        """[U, Ft] features of the text tower, not standardised, for these texts."""
        order = np.argsort(np.array([len(text.as_py()) for text in texts]), kind="stable")  # like lengths together
        key = {
            "what": "text",
            "weights": tensors_fingerprint(dict(self.encoder.text.model.state_dict())),
            "tower": json.dumps({**self.encoder.text.spec("inside"), "standardize": None}, sort_keys=True),
            "computed_by": self._computed_by(),
            "tokens": tensors_fingerprint(self.encoder.tokenize(texts[:64].to_pylist()) if len(texts) else {}),
            "texts": fingerprint(texts.to_pylist()),
        }

        def encode() -> Iterator[NDArray[np.float32]]:
            for start in range(0, len(texts), 256):
                batch = [texts[int(index)].as_py() for index in order[start : start + 256]]
                tokens = {name: value.to(self._device) for name, value in self.encoder.tokenize(batch).items()}
                yield self.encoder.text.pooled(tokens).float().cpu().numpy()
                self.on_progress("text features", min(start + 256, len(texts)), len(texts))

        by_length = self._run(key, (len(texts), self.encoder.text.feature_dim), encode)
        unsorted = np.empty_like(by_length)
        unsorted[order] = by_length
        return unsorted

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """[n, F] and [n, Ft]: raw features of the first `count` samples of a stream, pictures and captions."""
        assert isinstance(self.data, StreamData)
        images, texts = [], []
        with self._evaluating():
            for batch in self.data.first_batches(count):
                tokens = {name: value.to(self._device) for name, value in batch["text"].items()}
                images.append(self.encoder.trunk(batch["image"].to(self._device), groups=0)["feature"].float().cpu())
                texts.append(self.encoder.text.pooled(tokens).float().cpu())
                self.on_progress("features of the first samples", sum(len(part) for part in images), count)
        return torch.cat(images)[:count], torch.cat(texts)[:count]

    def _computed_by(self) -> list[str]:
        """Another torch or another device rounds differently."""
        return [torch.__version__, self._device.type]

    @property
    def _device(self) -> torch.device:
        return self.encoder.logit_scale.device

    def _run(
        self, key: dict[str, Any], shape: tuple[int, ...], encode: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        with self._evaluating(), first_on_each_machine():
            return self.store.get(key, shape, encode)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without gradient, and with dropout off."""
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.encoder.train(was_training)
