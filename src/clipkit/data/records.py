"""Records: each picture with what is said about it, as one compact table.

The columns live in Arrow buffers, which worker processes share instead of copying.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.images import ImageReader, fingerprint
from clipkit.errors import UserError

__all__ = ["Record", "Records"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One picture: `image` (a name its reader opens), captions (may be none), class index, split.

    `subset` divides a split further ("seen", "unseen"); `group` names what several pictures show alike (a concept
    drawn in two styles): such pictures and their captions are right answers for each other. `carved` is true of a
    validation picture that the data set itself counts as training.
    """

    image: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    split: str = "train"
    subset: str = ""
    group: str | None = None
    carved: bool = False


@dataclass(frozen=True)
class Records:
    """A data set, or a part of one: a table of records, class names, and the reader of its pictures.

    Args:
        table: columns image, captions, label (−1: none), split, subset, group, carved, image_id.
        class_names: of all splits together.
        reader: opens a picture by its name.
        name: of the data set, for messages and file names.
        notes: what was decided in the user's place, to be said.
        inputs: the files and folders that the table was read from. While none of them changes, and none that is missing
            appears, the table may be kept; without any it is read anew each time.
    """

    table: pa.Table
    reader: ImageReader
    class_names: tuple[str, ...] = ()
    name: str = "data"
    notes: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

    @classmethod
    def from_records(
        cls, records: Iterable[Record], *, reader: ImageReader, class_names: Sequence[str] = (), name: str = "data"
    ) -> "Records":
        """Pack records into the table; row numbers become image ids."""
        rows = list(records)
        names: dict[str, int] = {}
        group = [names.setdefault(row.image if row.group is None else row.group, len(names)) for row in rows]
        table = pa.table(
            {
                "image": pa.array([row.image for row in rows], pa.large_string()),
                "captions": pa.array([list(row.captions) for row in rows], pa.large_list(pa.large_string())),
                "label": pa.array([-1 if row.label is None else row.label for row in rows], pa.int64()),
                "split": pa.array([row.split for row in rows], pa.string()).dictionary_encode(),
                "subset": pa.array([row.subset for row in rows], pa.string()).dictionary_encode(),
                "group": pa.array(group, pa.int64()),
                "carved": pa.array([row.carved for row in rows], pa.bool_()),
                "image_id": pa.array(np.arange(len(rows))),
            }
        )
        return cls(table.combine_chunks(), reader, tuple(class_names), name)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def select(self, split: str, subset: str | None = None) -> "Records":
        """The records of one split (and subset)."""
        mask = pc.equal(self.table["split"], split)
        if subset is not None:
            mask = pc.and_(mask, pc.equal(self.table["subset"], subset))
        return replace(self, table=self.table.filter(mask).combine_chunks())

    def subsets(self) -> list[str]:
        """The subsets that occur, sorted; [""] where there is no division."""
        return sorted(set(self.table["subset"].to_pylist()))

    def one_per_group(self, count: int) -> "Records":
        """The first pictures of the first `count` groups."""
        rows = np.sort(np.unique(self.groups, return_index=True)[1])[:count]
        return replace(self, table=self.table.take(pa.array(rows)).combine_chunks())

    def noting(self, notes: Sequence[str]) -> "Records":
        """The same records, with these notes added."""
        return replace(self, notes=(*self.notes, *notes))

    def reading(self, inputs: Iterable[Path]) -> "Records":
        """The same records, which were read from these files and folders."""
        return replace(self, inputs=(*self.inputs, *inputs))

    def without(self, image_ids: Sequence[int]) -> "Records":
        """All records but these."""
        keep = pc.invert(pc.is_in(self.table["image_id"], pa.array(list(image_ids), pa.int64())))
        return replace(self, table=self.table.filter(keep).combine_chunks())

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return self._integers("label")

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        return self._integers("group")

    @cached_property
    def image_ids(self) -> NDArray[np.int64]:
        return self._integers("image_id")

    @cached_property
    def caption_offsets(self) -> NDArray[np.int64]:
        """[N + 1]: the captions of row i are entries offsets[i] … offsets[i + 1] − 1 of all captions."""
        lengths = pc.list_value_length(self.table["captions"]).to_numpy()
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @cached_property
    def caption_texts(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """The distinct captions, and for each caption of each row, in order, the index of its text."""
        flat = pc.list_flatten(self.table["captions"]).combine_chunks()
        encoded = (flat if isinstance(flat, pa.Array) else pa.concat_arrays(flat.chunks)).dictionary_encode()
        return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)

    def text_rows(self, part: "Records") -> NDArray[np.int64]:
        """For each distinct text of `part`, its index among the distinct texts of these records."""
        found = pc.index_in(part.caption_texts[0], self.caption_texts[0])
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def image_name(self, row: int) -> str:
        return str(self.table["image"][row].as_py())

    def captions(self, row: int) -> list[str]:
        captions: list[str] = self.table["captions"][row].as_py()
        return captions

    @cached_property
    def _stamped(self) -> list[str]:
        """Each picture's name with its stamp."""
        return [f"{name}\t{self.reader.stamp(name)}" for name in self.table["image"].to_pylist()]

    @cached_property
    def picture_hashes(self) -> NDArray[np.uint64]:
        """[N] one number a picture, that changes when the picture does: of its name and its reader's stamp."""
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in self._stamped)
        return np.frombuffer(digests, np.uint64)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when any picture, caption, label or their order does."""
        parts = list(self._stamped)
        texts, index = self.caption_texts
        parts += texts.to_pylist()
        parts += [str(a.tolist()) for a in (index, self.caption_offsets, self.labels, self.groups)]
        return fingerprint(parts)

    def check_captions(self, origin: str | Path) -> None:
        """Refuse captions without a letter; the message names the pictures."""
        texts, index = self.caption_texts
        empty = {i for i, text in enumerate(texts.to_pylist()) if not text or not text.strip()}
        if empty:
            bad = np.flatnonzero(np.isin(index, list(empty)))
            rows = np.unique(np.searchsorted(self.caption_offsets, bad, side="right") - 1)
            shown = ", ".join(self.image_name(int(row)) for row in rows[:5])
            raise UserError(
                f"{origin}: {len(bad)} empty caption(s), for {shown}{' …' if len(rows) > 5 else ''}; "
                "fill them in or remove those rows"
            )

    def _integers(self, column: str) -> NDArray[np.int64]:
        return np.array(self.table[column].to_numpy(), np.int64)
