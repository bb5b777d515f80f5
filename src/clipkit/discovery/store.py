"""The growing store of scored pictures: each picture once, whatever happens on the way.

    store = NoveltyStore.open("novel", model=fingerprint, embed_dim=512, threshold=0.7)
    store.add(pictures, embeds)
    if store.due(100):
        rows = [picture.row for picture in store.novel()]
        store.add_clustering(dict(zip(rows, cluster(store.embeds(rows)))), {"method": "hdbscan"})
    store.accept(3, "okapi")

A folder holds `novelty.sqlite` and `embeds.f32`, [rows, D] float32. Embeddings are appended and brought to the disk
first; then one transaction makes rows of them. A process that is killed in between leaves embeddings that no row speaks
of, and they are cut off when the store is next opened or added to. So it holds what the finished calls put there.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipkit.discovery import store_tables as tables
from clipkit.discovery.store_files import StoreFiles
from clipkit.discovery.store_records import Clustering, Counts, Scored, Stored, checked_embeds, content_hash
from clipkit.errors import UserError

__all__ = ["Clustering", "Counts", "NoveltyStore", "Scored", "Stored", "content_hash"]


@dataclass(frozen=True)
class NoveltyStore:
    """Get one by `open` or `existing`. It holds no file open: threads may share it, and forked processes.

    What writes lets one process in at a time; what reads waits at most while a commit goes to the disk. Everything
    raises `UserError` where another process is at work for longer than the time allowed, or files cannot be read or
    written, or are damaged; nothing that was stored is lost by that.

    Args:
        files: where it is.
        model: a fingerprint of the model and the detector that score.
        threshold: of the score, beyond which a picture is novel.
    """

    files: StoreFiles
    model: str
    threshold: float

    @classmethod
    def open(
        cls, folder: str | Path, *, model: str, embed_dim: int, threshold: float, timeout: float = 60.0
    ) -> "NoveltyStore":
        """The store in a folder, made if there is none.

        Args:
            folder: where it is, or will be.
            model, threshold: see the class.
            embed_dim: D.
            timeout: seconds to wait for other processes.

        Raises:
            UserError: it was written by another model, or with another threshold; see the class.
        """
        if not model or embed_dim < 1 or not math.isfinite(threshold):
            raise ValueError(f"model={model!r}, embed_dim={embed_dim}, threshold={threshold}: one of them is none")
        files = StoreFiles(_absolute(folder), embed_dim, timeout)
        if files.is_new():
            files.create(
                lambda db: tables.create_tables(db, model=model, embed_dim=embed_dim, threshold=float(threshold))
            )
        found = cls.existing(folder, timeout=timeout)
        if (found.model, found.embed_dim) != (model, embed_dim):
            raise UserError(
                f"{found.folder} holds {len(found)} pictures scored by {found.model} (embed_dim={found.embed_dim}), "
                f"not by {model} (embed_dim={embed_dim}): scores of two models or detectors do not compare. Choose "
                "another folder, or score with what wrote this one"
            )
        if found.threshold != threshold:
            raise UserError(
                f"{found.folder} calls novel what is beyond threshold={found.threshold!r}, not {threshold!r}: keep to "
                "that, or choose another folder"
            )
        return found

    @classmethod
    def existing(cls, folder: str | Path, *, timeout: float = 60.0) -> "NoveltyStore":
        """The store in a folder, whoever wrote it; `UserError` if there is none."""
        files = StoreFiles(_absolute(folder), 1, timeout)
        if files.is_new():
            raise UserError(f"{files.folder} holds no scored pictures ({files.database.name}): score some first")
        with files.reading() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != tables.SCHEMA_VERSION:
                raise UserError(
                    f"{files.database} has schema version {version}, and this clipkit reads {tables.SCHEMA_VERSION}: "
                    "use the clipkit that wrote it, or choose another folder"
                )
            files.check(db, "quick_check")
            model, embed_dim, threshold = db.execute("SELECT model, embed_dim, threshold FROM store").fetchone()
            store = cls(replace(files, embed_dim=embed_dim), model, threshold)
            store.files.embeds.check(tables.num_rows(db))
        store.files.tidy()
        return store

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def embed_dim(self) -> int:
        return self.files.embed_dim

    def __len__(self) -> int:
        with self.files.reading() as db:
            return tables.num_rows(db)

    def counts(self) -> Counts:
        """How many pictures are known, novel and accepted."""
        with self.files.reading() as db:
            return tables.count(db)

    def holds(self, contents: Iterable[str]) -> set[str]:
        """Those of some content hashes whose pictures are here already: they need not be scored again."""
        with self.files.reading() as db:
            return {content for content in contents if tables.has(db, content)}

    def add(self, pictures: Sequence[Scored], embeds: NDArray[np.floating]) -> int:
        """Add pictures: all of them or, where anything goes wrong, none.

        A picture whose content is here already, or came earlier in the same call, stays as it was.

        Args:
            pictures: n.
            embeds: [n, D], finite; kept as float32.

        Returns:
            How many were new.

        Raises:
            UserError: another D; NaN or infinity; see the class.
        """
        values = checked_embeds(pictures, embeds, embed_dim=self.embed_dim)
        try:
            with self.files.writing() as db:
                rows, new = self.files.cut(db), dict[str, int]()
                for index, picture in enumerate(pictures):
                    if picture.content not in new and not tables.has(db, picture.content):
                        new[picture.content] = index
                if new:
                    self.files.embeds.append(values[list(new.values())])
                    tables.insert_pictures(db, (pictures[index] for index in new.values()), first=rows)
        except BaseException:
            self.files.tidy()  # a disk that is full is not kept full by what does not count
            raise
        return len(new)

    def novel(self) -> list[Stored]:
        """The novel pictures, in the order of arrival."""
        with self.files.reading() as db:
            return tables.select(db, tables.NOVEL)

    def accepted(self) -> list[Stored]:
        """The pictures whose clusters became classes, in the order of arrival."""
        with self.files.reading() as db:
            return tables.select(db, "accepted != ''")

    def embeds(self, rows: ArrayLike) -> NDArray[np.float32]:
        """[n] row numbers -> [n, D], a copy."""
        with self.files.reading() as db:
            return self.files.embeds.read(rows, rows=tables.num_rows(db))

    def add_clustering(self, labels: Mapping[int, int], about: Mapping[str, Any]) -> int:
        """Add a clustering to the history, and return its number.

        Args:
            labels: the cluster of each picture, by row; below 0 for pictures in none.
            about: plain values that say how it was made.
        """
        plain, text = {int(row): int(cluster) for row, cluster in labels.items()}, json.dumps(dict(about))
        with self.files.writing() as db:
            rows = tables.num_rows(db)
            if not plain or min(plain) < 0 or max(plain) >= rows:
                raise ValueError(f"a cluster for one row or more is expected, each from 0 to below {rows}")
            return tables.insert_clustering(db, plain, text)

    def clusterings(self) -> list[Clustering]:
        """The history, oldest first."""
        with self.files.reading() as db:
            return tables.history(db)

    def labels_of(self, clustering: int) -> dict[int, int]:
        """The cluster of each picture, by row, in one clustering; `UserError` if there is no such."""
        with self.files.reading() as db:
            if not (found := tables.clustering_rows(db, clustering)):
                last = tables.last_clustering(db)
                raise UserError(f"{self.folder} has no clustering {clustering}: there are {last}, numbered from 1")
            return found

    def accept(self, cluster: int, name: str, *, clustering: int | None = None) -> list[Stored]:
        """Make the novel pictures of a cluster of the last clustering a class; they are novel no longer.

        Args:
            cluster: its number.
            name: of the class.
            clustering: the one that was looked at. Where there is a newer one this is refused: its clusters differ.

        Returns:
            The pictures, as they are now.

        Raises:
            UserError: there is no such cluster, or none of its pictures is novel; no name; see the class.
        """
        name = name.strip()
        if not name:
            raise UserError(f"cluster {cluster} needs the name of the class that it is to be")
        with self.files.writing() as db:
            last = tables.last_clustering(db)
            if clustering is not None and clustering != last:
                raise UserError(
                    f"cluster {cluster} was chosen in clustering {clustering}, and the last one of {self.folder} is "
                    f"{last}: look at that and choose again"
                )
            clusters = {one.cluster for one in tables.select(db, f"{tables.NOVEL} AND cluster >= 0")}
            if cluster not in clusters:
                valid = ", ".join(map(str, sorted(one for one in clusters if one is not None))) or "none"
                raise UserError(
                    f"{self.folder}: the last clustering ({last}) has no cluster {cluster} with novel pictures; it has "
                    f"{valid}. Pictures of an accepted cluster are novel no longer"
                )
            found = tables.select(db, f"{tables.NOVEL} AND cluster = ?", cluster)
            db.executemany("UPDATE pictures SET accepted = ? WHERE row = ?", ((name, one.row) for one in found))
        return [replace(one, novel=False, accepted=name) for one in found]

    def due(self, every: int) -> bool:
        """Whether there are `every` novel pictures or more that the last clustering, if there was one, did not see."""
        if every < 1:
            raise ValueError(f"every={every}: a number from 1 is expected")
        with self.files.reading() as db:
            return tables.unclustered(db) >= every


def _absolute(folder: str | Path) -> Path:
    return Path(folder).expanduser().absolute()
