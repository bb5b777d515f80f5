"""Every run below a folder as one row: what was run, what came of it, and why nothing did.

Used by: clipkit.runs.leaderboard
"""

import calendar
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clipkit.errors import UserError
from clipkit.runs.leaderboard.files import Damaged, outcome, plain, read_record
from clipkit.runs.leaderboard.folders import RunFolder, Walk
from clipkit.runs.leaderboard.recipe import BY_THEMSELVES, NoResults, choices_of, command_of, overrides_of, recipe_in

__all__ = ["Gathered", "Row", "gather"]

FEW = 400  # runs that are read faster than processes are made
CHUNK = 250


@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        folder: below the root, with "/"; "." is the root itself.
        command: "train", "evaluate", "discover", "trial" (of a sweep); empty if nothing says it.
        approach, backbone, data, shots: as chosen; empty if the command knows no such thing.
        seed, split_seed: which repetition it is; `split_seed` as it was typed.
        status: as in `run.json`, or "killed" (it says running, and no process is at work), "no metrics" (it finished
            without a number), "damaged" (a file cannot be understood).
        reason: why there is no result, in words; empty if there is one.
        metrics: by full name, all finite; of a run that did not finish, none.
        wall_s, memory_mb: as measured; None if unknown.
        started: as recorded; `since` is the same in seconds since 1970.
        said: the overrides that make it what it is, besides its choices and seeds.
        recipe: what runs share that differ in their seeds alone.
        report: whether it has left a `report.html`.
    """

    folder: str
    command: str
    approach: str
    backbone: str
    data: str
    shots: str
    seed: int | None
    split_seed: str
    status: str
    reason: str
    metrics: Mapping[str, float]
    wall_s: float | None
    memory_mb: float | None
    started: str
    since: float
    said: tuple[str, ...]
    recipe: str
    report: bool

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.status == "finished"


@dataclass
class Gathered:
    """All below `root`: rows, the newest first; how many folders measure nothing, by command; which are unreadable."""

    root: Path
    rows: list[Row] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def gather(root: str | None, *, meanwhile: Callable[[], object] | None = None) -> Gathered:
    """Read every run below a folder.

    Many are read by processes of their own, forked at once: what needs long to load is best loaded `meanwhile`.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    walk = Walk(root)
    found = Gathered(walk.root, unreadable=walk.unreadable)
    folders, place = iter(walk), os.fspath(walk.root)
    reads = [_read(folder, place) for folder in islice(folders, FEW)]
    chunks = iter(lambda: list(islice(folders, CHUNK)), [])
    first = next(chunks, None)
    if first is not None and hasattr(os, "fork"):
        with get_context("fork").Pool(len(os.sched_getaffinity(0))) as readers:
            waiting = [readers.apply_async(_read_all, (chunk, place)) for chunk in chain([first], chunks)]
            if meanwhile is not None:
                meanwhile()
            for each in waiting:
                reads += each.get()
    elif first is not None:
        reads += _read_all([*first, *chain.from_iterable(chunks)], place)
    for read in reads:
        if isinstance(read, Row):
            found.rows.append(read)
        elif read is not None and read != "leaderboard":
            found.others[read] += 1
    if not found.rows:
        others = ", ".join(f"{name} {count:,}" for name, count in sorted(found.others.items()))
        also = f", only folders of commands that measure nothing ({others})" if others else ""
        raise UserError(
            f"root={root}: no runs found{also}. Folders with a run.json were looked for at any depth, as clipkit.train "
            "and clipkit.evaluate leave them below outputs/: say root=FOLDER"
        )
    found.rows.sort(key=lambda row: (-row.since, row.folder))
    return found


def _read_all(folders: list[RunFolder], root: str) -> list[Row | str | None]:
    return [_read(folder, root) for folder in folders]


def _read(folder: RunFolder, root: str) -> Row | str | None:
    """A run's row, or what it is counted as instead; None if it has vanished."""
    about: dict[str, Any] = {}
    try:
        about = read_record(folder)
        status, reason, metrics = outcome(folder, about)
    except FileNotFoundError:
        return None
    except Damaged as damage:
        status, reason, metrics = "damaged", str(damage), {}
    overrides = overrides_of(about)
    said = {each.key: each.value for each in overrides}
    try:
        command = command_of(folder, about, said)
    except NoResults as other:
        return str(other)
    started = plain(about.get("started") or "")
    chosen = choices_of(about, command, said)
    shots = said.get("data.shots", "")
    return Row(
        folder=_below(folder.path, root),
        command=command,
        approach=chosen.get("approach", ""),
        backbone=chosen.get("backbone", ""),
        data=chosen.get("data", ""),
        shots="" if shots == "null" else shots,
        seed=_whole(about.get("seed", said.get("seed"))),
        split_seed=said.get("data.split_seed", ""),
        status=status,
        reason=reason,
        metrics=metrics,
        wall_s=_sum(about, "wall_s", "earlier_wall_s"),
        memory_mb=_sum(about, "peak_memory_mb"),
        started=started,
        since=_seconds(started, folder),
        said=tuple(each.text for each in overrides if each.tells and (command, each.key) not in BY_THEMSELVES),
        recipe=recipe_in(folder, about, overrides),
        report="report.html" in folder.files,
    )


def _below(path: str, root: str) -> str:
    """A path that begins with the root's, without that; as text that every file can hold."""
    below = path.removeprefix(root).strip("/") or "."
    return below if below.isascii() else below.encode("utf-8", "replace").decode()


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _sum(about: Mapping[str, Any], *keys: str) -> float | None:
    values = [about[key] for key in keys if isinstance(about.get(key), int | float)]
    return float(sum(values)) if values and all(map(math.isfinite, values)) else None


def _seconds(started: str, folder: RunFolder) -> float:
    """When it began, in seconds since 1970; of what does not say so, when its record was written."""
    try:
        numbers = [int(started[at : at + 2]) for at in (2, 5, 8, 11, 14, 17)]  # 2026-11-29T07:19:06+0100
        local = calendar.timegm((2000 + numbers[0], *numbers[1:], 0, 0, 0))
        zone = started[19:] or "+0000"
        return local - int(f"{zone[0]}1") * (3600 * int(zone[1:3]) + 60 * int(zone[3:5]))
    except (ValueError, IndexError):
        try:
            return os.stat(f"{folder.path}/run.json").st_mtime
        except OSError:
            return 0.0
