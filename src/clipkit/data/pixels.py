"""Squares of pixels by image id: from memory, from the packed store, or decoded from the pictures' own files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.data.decoding import DECODE_ERRORS, reason_of
from clipkit.data.opening import Choose, open_crop
from clipkit.data.packing import PackedStore
from clipkit.data.policies import PicturePolicy, may_be_mirrored
from clipkit.data.records import Records
from clipkit.errors import UserError

__all__ = ["Pixels"]


class Pixels:
    """The pixels of a data set.

    Args:
        records: the whole data set, broken pictures removed.
        preprocess: PIL image -> uint8 [3, S, S].
        memory: [N, 3, S, S] uint8 in the order of `records`, or None.
    """

    def __init__(
        self,
        records: Records,
        preprocess: Callable[[Image.Image], Tensor],
        *,
        memory: Tensor | None = None,
    ) -> None:
        self.records, self.preprocess, self.memory = records, preprocess, memory
        self.packed: PackedStore | None = None
        self._packed_row: NDArray[np.int64] | None = None

    def use(self, packed: PackedStore) -> None:
        """Take training pictures from a store that holds smaller copies of some of them."""
        self.packed, self._packed_row = packed, packed.rows(self.records.picture_hashes)

    def prepare(self, policy: object) -> None:
        """Look up what every use needs, before worker processes are forked: they share it then."""
        needed: list[object] = [self.size, self._order]
        if isinstance(policy, PicturePolicy) and policy.reads_captions:
            needed.append(self._mirror)

    @cached_property
    def size(self) -> int:
        """Side of the square that the model eats."""
        return int(self.preprocess(Image.new("RGB", (8, 8))).shape[-1])

    def squares(self, image_ids: NDArray[np.int64], *, training: bool = False) -> Tensor:
        """[B] image ids -> uint8 [B, 3, S, S], as the model's preprocessing makes them.

        Training pictures may come from the packed store; what is measured always comes from the pictures themselves.
        """
        rows = self._rows(image_ids)
        if self.memory is not None:
            return self.memory[torch.from_numpy(rows)]
        out = self._empty(len(rows))
        for place, row in enumerate(rows.tolist()):
            with self._readable(row):
                out[place] = self.preprocess(self._image(row, training))
        return out

    def augmented(self, image_ids: NDArray[np.int64], policy: PicturePolicy, draws: NDArray[np.float64]) -> Tensor:
        """[B] image ids with [B, policy.draws] numbers in [0, 1) -> uint8 [B, 3, S, S], each a view of its own."""
        rows = self._rows(image_ids)
        out = self._empty(len(rows))
        mirror = self._mirror[rows] if policy.reads_captions else np.ones(len(rows), bool)
        for place, row in enumerate(rows.tolist()):
            with self._readable(row):
                numbers = draws[place].tolist()
                out[place] = policy(self._crop(row), self.size, numbers, mirror=bool(mirror[place]))
        return out

    @cached_property
    def _mirror(self) -> NDArray[np.bool_]:
        """[N] whether none of a picture's captions tells left from right."""
        texts, index = self.records.caption_texts
        fine = np.array([may_be_mirrored(text) for text in texts.to_pylist()], bool)
        telling = np.zeros(len(self.records) + 1, np.int64)
        owner = np.repeat(np.arange(len(self.records)), np.diff(self.records.caption_offsets))
        np.add.at(telling, owner[~fine[index]], 1)
        fits: NDArray[np.bool_] = telling[: len(self.records)] == 0
        return fits

    def _rows(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        order = self._order
        place = np.searchsorted(self.records.image_ids, image_ids, sorter=order)
        return image_ids[:0] if len(image_ids) == 0 else order[place]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.records.image_ids, kind="stable")

    def _empty(self, count: int) -> Tensor:
        """Channels-last memory: what pictures are decoded into, and what convolutions prefer."""
        return torch.empty((count, 3, self.size, self.size), dtype=torch.uint8, memory_format=torch.channels_last)

    def _packed(self, row: int) -> int:
        return -1 if self._packed_row is None else int(self._packed_row[row])

    def _image(self, row: int, training: bool) -> Image.Image:
        packed = self._packed(row) if training else -1
        if self.packed is not None and packed >= 0:
            return self.packed.image(packed)
        return self.records.reader(self.records.image_name(row))

    def _crop(self, row: int) -> Callable[[Choose, int], Tensor]:
        packed = self._packed(row)
        if self.packed is not None and packed >= 0:
            return partial(self.packed.open_crop, packed)
        return partial(open_crop, self.records.reader, self.records.image_name(row))

    @contextmanager
    def _readable(self, row: int) -> Iterator[None]:
        try:
            yield
        except DECODE_ERRORS as error:
            raise UserError(
                f"{self.records.image_name(row)} cannot be read any more ({reason_of(error)}): it "
                "could when the run began. Was it moved or changed?"
            ) from error
