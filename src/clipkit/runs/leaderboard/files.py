"""What the files of one run's folder say, and what is wrong with them.

Used by: clipkit.runs.leaderboard.rows
"""

import fcntl
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from clipkit.runs.leaderboard.folders import RunFolder

__all__ = ["Damaged", "outcome", "plain", "read_record"]

LONGEST = 500  # letters of a reason
NUMBERS = {float, int}
LARGEST = sys.float_info.max


class Damaged(Exception):
    """A file that cannot be understood; the text says why."""


def read_record(folder: RunFolder) -> dict[str, Any]:
    """What `run.json` says, with status "killed" where it says running and no process is at work.

    Raises:
        FileNotFoundError: it has vanished.
        Damaged: it cannot be understood.
    """
    about = _mapping(folder, "run.json")
    if about.get("status") != "running" or _at_work(folder):
        return about
    about = _mapping(folder, "run.json")  # it may have ended between the two looks
    if about.get("status") != "running":
        return about
    return {**about, "status": "killed", "error": "it says running, and no process is at work there"}


def outcome(folder: RunFolder, about: Mapping[str, Any]) -> tuple[str, str, dict[str, float]]:
    """Status, why there is no result (empty if there is one), and the metrics of a run that finished."""
    status, error = plain(about.get("status") or ""), plain(about.get("error") or "")
    if not status:
        return "damaged", "run.json has no status", {}
    if status != "finished":
        return status, error, {}
    try:
        metrics = _metrics(_mapping(folder, "metrics.json"))
    except FileNotFoundError:
        return "no metrics", "it finished without a metrics.json", {}
    except Damaged as damage:
        return "damaged", str(damage), {}
    return ("finished", "", metrics) if metrics else ("no metrics", "its metrics.json holds no number", {})


def plain(value: Any) -> str:
    """Any value as one line of text that every file can hold."""
    text = " ".join(str(value).split())
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _mapping(folder: RunFolder, name: str) -> dict[str, Any]:
    try:
        file = os.open(f"{folder.path}/{name}", os.O_RDONLY)
        try:
            text = b"".join(iter(lambda: os.read(file, 1 << 20), b""))
        finally:
            os.close(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(name) from error
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise Damaged(f"{name} is empty")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(plain(f"{name} is not JSON: {error}")) from error
    if not isinstance(value, dict):
        raise Damaged(f"{name} holds a {type(value).__name__}, and a mapping is expected")
    return value


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """All of them; `Damaged` if one is no finite number, for then the others are not to be trusted either."""
    if not (NUMBERS.issuperset(map(type, values.values())) and _all_finite(values.values())):
        name = next(name for name, value in values.items() if type(value) not in NUMBERS or not _finite(value))
        raise Damaged(plain(f"metrics.json: {name} is {str(values[name])[:40]}, and a finite number is expected"))
    return dict(zip(_names(tuple(values)), map(float, values.values()), strict=True))


def _finite(value: float) -> bool:
    return -LARGEST <= value <= LARGEST  # false of NaN, and whole numbers may be beyond any float


def _all_finite(values: Iterable[float]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # a whole number beyond any float
        return False


@cache
def _names(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The same texts for all runs that have these metrics."""
    return tuple(map(plain, metrics))


def _at_work(folder: RunFolder) -> bool:
    """Whether a process holds the run's lock. The question itself shares the lock for an instant, if nobody does."""
    try:
        lock = os.open(f"{folder.path}/.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # somebody else's: what run.json says has to do
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is held, or the disk has no locks
        return True
    finally:
        os.close(lock)
    return False
