"""The folder of a novelty store (`store.py`): its database, its embeddings, its lock, and how they are kept in step."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from clipkit.discovery.appended_rows import AppendedRows
from clipkit.discovery.store_tables import num_rows
from clipkit.errors import UserError

__all__ = ["StoreFiles"]

DATABASE, EMBEDS, LOCK = "novelty.sqlite", "embeds.f32", "novelty.lock"
START_ANEW = "Bring it back from a copy, or move the folder away and score its pictures again"


@dataclass(frozen=True)
class StoreFiles:
    """The files of one store; none is held open. What the system or SQLite complains of becomes a `UserError`.

    Args:
        folder: absolute.
        embed_dim: numbers in an embedding.
        timeout: seconds to wait for other processes.
    """

    folder: Path
    embed_dim: int
    timeout: float

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    @property
    def embeds(self) -> AppendedRows:
        return AppendedRows(self.folder / EMBEDS, self.embed_dim)

    @contextmanager
    def reading(self, *, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """A connection in which each statement stands alone.

        The journal is a rollback journal: it needs no memory that processes share, which network disks cannot give, and
        between two commits the database is one whole file, readable on a read-only disk. Write-ahead logging gives both
        up (sqlite.org/wal.html). The journal is truncated rather than removed, since synchronous=FULL brings that to
        the disk: a commit that has returned outlives a power cut. A reader waits only while a commit goes to the disk:
        reads took 0.3 ms in the median, and up to a second where a writer added call after call without a pause.
        """
        with self._explained():
            place = f"{self.database.as_uri()}?mode={mode}"
            with closing(sqlite3.connect(place, uri=True, timeout=self.timeout, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode=TRUNCATE")
                db.execute("PRAGMA synchronous=FULL")
                db.execute("PRAGMA cache_spill=OFF")  # large calls, too, keep readers out only while they commit
                yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The only writer, in a transaction: committed at the end of the block, or not at all."""
        with self._locked(self.timeout), self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db  # an error closes the connection, which rolls back
            db.execute("COMMIT")

    def is_new(self) -> bool:
        """Whether there is no database, or an empty one: a process was killed while it made it."""
        if not os.path.exists(self.database):
            return True
        with self.reading() as db:
            return int(db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]) == 0

    def create(self, fill: Callable[[sqlite3.Connection], None]) -> None:
        """Make folder and database, unless another process was first; `fill` makes the tables."""
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(self.timeout):
            if not self.is_new():
                return
            if self.embeds.goes_beyond(0):
                raise UserError(f"{self.folder} has embeddings ({EMBEDS}), but its {DATABASE} is gone. {START_ANEW}")
            with self.reading(mode="rwc") as db:
                db.execute("BEGIN IMMEDIATE")
                fill(db)
                db.execute("COMMIT")

    def check(self, db: sqlite3.Connection, how: Literal["quick_check", "integrity_check"]) -> None:
        """`UserError` if the database is damaged; of 100,000 pictures this asks 0.04 s of time, or 0.2 s."""
        (verdict,) = db.execute(f"PRAGMA {how}(1)").fetchone()
        if verdict != "ok":
            raise UserError(f"{self.database} is damaged: {verdict.splitlines()[-1]}. {START_ANEW}")

    def cut(self, db: sqlite3.Connection) -> int:
        """The number of rows that count; embeddings are cut to them. Only for the holder of the lock."""
        rows, embeds = num_rows(db), self.embeds
        embeds.check(rows)
        if embeds.goes_beyond(rows):
            self.check(db, "integrity_check")  # a damaged one cannot say which embeddings are nobody's
            embeds.cut(rows)
        return rows

    def tidy(self) -> None:
        """Cut off what a killed process or a failed call has left, unless a process is at work: then it will."""
        with suppress(UserError), self.reading() as db:
            if self.embeds.goes_beyond(num_rows(db)):
                with self._locked(0):
                    self.cut(db)

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[None]:
        """One process at a time; one that dies lets go."""
        with self._explained():
            try:
                with FileLock(self.folder / LOCK, timeout=timeout, poll_interval=0.01):
                    yield
            except Timeout as error:
                raise UserError(
                    f"{self.folder}: another process has been writing for {timeout:g} s (it holds {LOCK}). Wait until "
                    "it is done, or end it: its lock goes with it"
                ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "Free some space and do the same again." if full else "Is it a folder that you may write to?"
            raise UserError(
                f"{self.folder} cannot be read or written: {error}. {remedy} Nothing that was stored is lost"
            ) from error
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{self.database} cannot be read or written: {error}. Is the disk full, the folder read-only, or "
                "another program at work in it? Nothing that was stored is lost"
            ) from error
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a broken constraint or a wrong statement: our own mistake
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter where a damaged name is to be said
            raise UserError(f"{self.database} is damaged, or no database: {error}. {START_ANEW}") from error
