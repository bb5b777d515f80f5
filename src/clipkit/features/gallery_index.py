"""The embeddings of a gallery's pictures, kept in one file and renewed only where a picture has changed.

Run: python -m clipkit.search model=… images=DIR query=…
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clipkit.data.decoding import Broken
from clipkit.data.gallery import Gallery, pixel_batches
from clipkit.errors import UserError
from clipkit.features.embedding_file import blocks, copy_rows, make_batch, read_rows, schema_of, still_true
from clipkit.features.store import tensors_fingerprint
from clipkit.models.dual_encoder import DualEncoder

__all__ = ["Embedded", "GalleryIndex"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Pictures and what a model says of them.

    Args:
        names: N pictures, in the order of the rows.
        blocks: memory-mapped arrays [n, D] whose rows have unit length; together N rows.
        broken: pictures without a row, and why.
        encoded: how many pictures were opened and encoded for this; the others were known.
    """

    names: list[str]
    blocks: list[Array]
    broken: list[Broken]
    encoded: int

    def rows(self, wanted: NDArray[np.int64]) -> Array:
        """[n] row numbers, sorted -> [n, D]."""
        starts = np.cumsum([0, *(len(block) for block in self.blocks)])
        owner = np.searchsorted(starts, wanted, side="right") - 1
        return np.concatenate([self.blocks[i][wanted[owner == i] - starts[i]] for i in np.unique(owner)])


class GalleryIndex:
    """Finds a gallery's embeddings on disk, encodes what is new or has changed, and forgets what is gone.

    There is one file a model and gallery. It is replaced as a whole, so of two processes that renew it at once either
    wins. Every row has a checksum: a damaged row is encoded again, and a file that is no index any more as a whole. An
    encoding that was interrupted goes on where it was.

    Args:
        folder: where the files are.
        encoder: of the pictures.
        batch_size, threads: as for `pixel_batches`.
        on_progress: called with (what, done, total) while pictures are encoded.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: DualEncoder,
        *,
        batch_size: int = 64,
        threads: int = 2,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.folder, self.encoder = Path(folder).expanduser(), encoder
        self.batch_size, self.threads = batch_size, threads
        self.on_progress = on_progress or (lambda what, done, total: None)

    def embeddings(self, gallery: Gallery) -> Embedded:
        """The embeddings of all pictures that can be read.

        Raises:
            UserError: the index cannot be written, or the model gives NaN or infinity.
        """
        key = self._key(gallery)
        place = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
        stamps = {os.path.abspath(name): gallery.reader.stamp(name) for name in gallery.names}
        typed = {os.path.abspath(name): name for name in gallery.names}
        old, known = read_rows(place, key), dict[str, int]()
        if old is not None:
            try:
                known = still_true(old, stamps)
            except (ValueError, TypeError, pa.ArrowException):  # damaged where Arrow does not look
                old = None
        todo = [path for path in stamps if path not in known]
        if old is None or todo or old.num_rows != len(known):
            old = self._renew(place, key, gallery, old, known, stamps, todo, typed)
        names = [typed[path] for path in old["path"].to_pylist()]
        reasons = old["broken"].to_pylist()
        fine = [index for index, reason in enumerate(reasons) if not reason]
        return Embedded(
            [names[index] for index in fine],
            [block for block, reason in blocks(old) if not reason],
            [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason],
            len(todo),
        )

    def _key(self, gallery: Gallery) -> str:
        """Everything but the pictures that an embedding depends on; another torch or device rounds differently."""
        image, projection = self.encoder.image, self.encoder.image_projection
        about = {
            "version": 1,
            "weights": tensors_fingerprint({**image.state_dict(), **projection.state_dict(prefix="projection.")}),
            "tower": {key: value for key, value in self.encoder.spec().items() if key in ("image", "projection")},
            "preprocess": image.preprocess.arguments,
            "computed_by": [torch.__version__, self._device.type, str(self.encoder.frozen_dtype)],
            "places": gallery.places,
        }
        return json.dumps(about, sort_keys=True, default=str)

    def _renew(
        self,
        place: Path,
        key: str,
        gallery: Gallery,
        old: pa.Table | None,
        known: dict[str, int],
        stamps: dict[str, str],
        todo: Sequence[str],
        typed: dict[str, str],
    ) -> pa.Table:
        """Write the index anew: rows that are still true, then those of `todo`; broken pictures come last."""
        part = place.with_name(f".{place.name}.part{os.getpid()}")
        width = self.encoder.embed_dim
        schema = schema_of(width, key)
        kept = False  # whether what was known is in the new file
        try:
            self._claim(4 * width * len(stamps))
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                broken: list[Broken] = []
                if old is not None:
                    broken += copy_rows(old, sorted(known.values()), writer)
                kept = True
                try:
                    for names, embeds, unreadable in self._encode(gallery, [typed[path] for path in todo]):
                        paths = [os.path.abspath(name) for name in names]
                        writer.write_batch(make_batch(schema, paths, stamps, [""] * len(paths), embeds))
                        broken += [(os.path.abspath(name), reason) for name, reason in unreadable]
                finally:
                    nothing = np.zeros((len(broken), width), np.float32)
                    paths, reasons = [path for path, _ in broken], [reason for _, reason in broken]
                    writer.write_batch(make_batch(schema, paths, stamps, reasons, nothing))
            new = read_rows(part, key)  # before it is moved: another process may put its own in the same place
            assert new is not None
            part.replace(place)
            return new
        except OSError as error:
            raise UserError(
                f"the index of these pictures could not be written to {self.folder}: {error}. Free some space or "
                "choose another place with index=DIR"
            ) from error
        except BaseException:
            if kept:  # what was encoded is not lost
                with suppress(OSError):
                    part.replace(place)
            raise
        finally:
            with suppress(OSError):
                part.unlink()

    def _encode(self, gallery: Gallery, names: Sequence[str]) -> Iterator[tuple[list[str], Array, list[Broken]]]:
        done = 0
        batches = pixel_batches(
            gallery, self.encoder.preprocess, names=names, batch_size=self.batch_size, threads=self.threads
        )
        self.encoder.eval()
        for batch in batches:
            embeds = np.empty((0, self.encoder.embed_dim), np.float32)
            if batch.names:
                with torch.inference_mode():
                    embeds = self.encoder.encode_image(batch.pixels.to(self._device)).float().cpu().numpy()
                if not np.isfinite(embeds).all():
                    raise UserError("the model gives NaN or infinity for pictures: its weights or precision are broken")
            yield batch.names, embeds, batch.broken
            done += len(batch.names) + len(batch.broken)
            self.on_progress("encoding pictures", done, len(names))

    def _claim(self, needed: int) -> None:
        """Say before the work that there is no room for its result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed * 1.1:
            raise OSError(f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")

    @property
    def _device(self) -> torch.device:
        return self.encoder.logit_scale.device
