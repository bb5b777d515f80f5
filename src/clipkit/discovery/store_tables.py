"""The tables of a novelty store (`store.py`), and every statement that is said to them."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from sqlite3 import Connection
from typing import Any

from clipkit.discovery.store_records import Clustering, Counts, Scored, Stored

__all__ = [
    "NOVEL",
    "SCHEMA_VERSION",
    "clustering_rows",
    "count",
    "create_tables",
    "has",
    "history",
    "insert_clustering",
    "insert_pictures",
    "last_clustering",
    "num_rows",
    "select",
    "unclustered",
]

SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE store (model TEXT NOT NULL, embed_dim INTEGER NOT NULL, threshold REAL NOT NULL)",
    """CREATE TABLE pictures (
        row INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, name TEXT NOT NULL, score REAL NOT NULL,
        novel INTEGER NOT NULL, label TEXT NOT NULL, accepted TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE clusterings (
        number INTEGER PRIMARY KEY, made TEXT NOT NULL, pictures INTEGER NOT NULL, clusters INTEGER NOT NULL,
        about TEXT NOT NULL)""",
    """CREATE TABLE memberships (
        clustering INTEGER NOT NULL, row INTEGER NOT NULL, cluster INTEGER NOT NULL,
        PRIMARY KEY (clustering, row)) WITHOUT ROWID""",
)
NOVEL = "novel AND accepted = ''"
LAST = "(SELECT MAX(number) FROM clusterings)"
STORED = f"""
    SELECT name, content, score, {NOVEL}, label, pictures.row, cluster, accepted
    FROM pictures LEFT JOIN memberships ON memberships.row = pictures.row AND clustering = {LAST}
    WHERE {{}} ORDER BY pictures.row"""


def create_tables(db: Connection, *, model: str, embed_dim: int, threshold: float) -> None:
    """The empty tables, their version, and whose scores they will hold."""
    for statement in SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO store VALUES (?, ?, ?)", (model, embed_dim, threshold))
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def num_rows(db: Connection) -> int:
    """How many pictures there are: rows are numbered from 0, and none is ever deleted."""
    return int(db.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM pictures").fetchone()[0])


def has(db: Connection, content: str) -> bool:
    return db.execute("SELECT 1 FROM pictures WHERE content = ?", (content,)).fetchone() is not None


def insert_pictures(db: Connection, pictures: Iterable[Scored], *, first: int) -> None:
    """Rows from `first` on."""

    def values() -> Iterator[tuple[int, str, str | bytes, float, bool, str]]:
        for row, picture in enumerate(pictures, first):
            yield row, picture.content, _kept(picture.name), float(picture.score), bool(picture.novel), picture.label

    db.executemany("INSERT INTO pictures (row, content, name, score, novel, label) VALUES (?, ?, ?, ?, ?, ?)", values())


def select(db: Connection, condition: str, *values: int) -> list[Stored]:
    """The pictures that an SQL condition holds for, in the order of arrival."""
    return [
        Stored(os.fsdecode(name), content, score, bool(novel), label, row, cluster, accepted)
        for name, content, score, novel, label, row, cluster, accepted in db.execute(STORED.format(condition), values)
    ]


def count(db: Connection) -> Counts:
    found = db.execute(f"SELECT SUM(NOT novel), SUM({NOVEL}), SUM(accepted != '') FROM pictures").fetchone()
    return Counts(*(number or 0 for number in found))


def unclustered(db: Connection) -> int:
    """How many novel pictures the last clustering did not see; all of them if there was none."""
    seen = f"SELECT row FROM memberships WHERE clustering = {LAST}"
    return int(db.execute(f"SELECT COUNT(*) FROM pictures WHERE {NOVEL} AND row NOT IN ({seen})").fetchone()[0])


def insert_clustering(db: Connection, labels: Mapping[int, int], about: str) -> int:
    """The cluster of each picture by row, and what is said of it as JSON -> the clustering's number."""
    number = last_clustering(db) + 1
    clusters = len({cluster for cluster in labels.values() if cluster >= 0})
    now = datetime.now(timezone.utc).isoformat()
    db.execute("INSERT INTO clusterings VALUES (?, ?, ?, ?, ?)", (number, now, len(labels), clusters, about))
    members = ((number, row, labels[row]) for row in sorted(labels))
    db.executemany("INSERT INTO memberships VALUES (?, ?, ?)", members)
    return number


def last_clustering(db: Connection) -> int:
    """Its number, 0 if there is none."""
    return int(db.execute(f"SELECT COALESCE({LAST}, 0)").fetchone()[0])


def history(db: Connection) -> list[Clustering]:
    found: Iterable[tuple[int, str, int, int, Any]] = db.execute(
        "SELECT number, made, pictures, clusters, about FROM clusterings ORDER BY number"
    )
    return [
        Clustering(number, datetime.fromisoformat(made), pictures, clusters, json.loads(about))
        for number, made, pictures, clusters, about in found
    ]


def clustering_rows(db: Connection, number: int) -> dict[int, int]:
    """The cluster of each picture by row in one clustering."""
    return dict(db.execute("SELECT row, cluster FROM memberships WHERE clustering = ?", (number,)))


def _kept(name: str) -> str | bytes:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8: its bytes, because SQLite takes no such text
        return os.fsencode(name)
    return name
