"""A leaderboard: the runs that were asked for, ranked by one metric, alone and with their seeds averaged.

Used by: clipkit.runs.leaderboard, and what writes and prints it
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clipkit.errors import UserError
from clipkit.runs.leaderboard.groups import Group, group_runs, ranked
from clipkit.runs.leaderboard.metrics import choose_columns, choose_metric, smaller_is_better
from clipkit.runs.leaderboard.rows import Gathered, Row
from clipkit.runs.leaderboard.where import choose_rows

__all__ = ["Board", "make_board"]

WAYS = {"higher": False, "lower": True}


@dataclass(frozen=True, eq=False)
class Board:
    """What is written and shown.

    Args:
        root: the folder that was searched.
        metric: what ranks; None if no run has any.
        ranked: whether it does; else the newest comes first.
        smaller: by metric, whether smaller is better; of every metric in `columns`.
        columns: metrics to show, the ranking one first.
        groups: of runs that differ in their seeds alone; those with a result, in order.
        runs: those with a result, in order.
        without: those without one, the newest first.
        repeated: the folders of runs that finished and yet do not count, because a newer one has the same seed.
        notes: what is to be known about it.
    """

    root: Path
    metric: str | None
    ranked: bool
    smaller: dict[str, bool]
    columns: list[str]
    groups: list[Group]
    runs: list[Row]
    without: list[Row]
    repeated: frozenset[str]
    notes: list[str]

    @property
    def way(self) -> str:
        """What ranks, in words."""
        if self.metric is None:
            return "none has a result"
        better = "lower" if self.smaller[self.metric] else "higher"
        return (
            f"by {self.metric}, {better} is better"
            if self.ranked
            else f"the newest first; {self.metric}: {better} is better"
        )

    @property
    def statuses(self) -> str:
        """What became of the runs without a result: "failed 3, running 1"."""
        counts = Counter(row.status for row in self.without)
        return ", ".join(f"{status} {count:,}" for status, count in counts.most_common())


def make_board(config: DictConfig, found: Gathered) -> Board:
    """Choose, average and rank.

    Raises:
        UserError: a filter, metric, column or way that does not exist.
    """
    _check(config)
    rows = choose_rows(found.rows, OmegaConf.to_container(config).get("where"))  # type: ignore[union-attr]  # a mapping
    results = [row.metrics for row in rows if row.finished]
    metric = choose_metric(results, None if config.metric is None else str(config.metric))
    columns = [] if metric is None else choose_columns(results, _listed(config.columns), first=metric)
    smaller = {name: smaller_is_better(name) for name in columns}
    if metric is not None and config.better is not None:
        smaller[metric] = WAYS[config.better]
    groups = [group for group in group_runs(rows) if _within(group, metric, config.at_least, config.at_most)]
    if not groups:
        raise UserError(f"at_least={config.at_least}, at_most={config.at_most}: no recipe has such a {metric}")
    rows = sorted((row for group in groups for row in group.runs), key=lambda row: (-row.since, row.folder))
    counted = {row.folder for group in groups for row in group.counted}
    runs = [row for row in rows if row.finished]
    groups = sorted((group for group in groups if group.counted), key=lambda group: -group.newest.since)
    by_metric = config.sort == "metric"
    if metric is not None and by_metric:
        way = smaller[metric]
        groups = ranked(groups, lambda group: group.means[metric].mean if metric in group.means else None, smaller=way)
        runs = ranked(runs, lambda row: row.metrics.get(metric), smaller=way)
    repeated = frozenset(row.folder for row in runs) - counted
    without = [row for row in rows if not row.finished]
    notes = _notes(found, len(repeated))
    return Board(found.root, metric, by_metric, smaller, columns, groups, runs, without, repeated, notes)


def _check(config: DictConfig) -> None:
    if config.better is not None and config.better not in WAYS:
        raise UserError(f"better={config.better}: choose from {', '.join(WAYS)}, or null for the metric's own")
    if config.sort not in ("metric", "started"):
        raise UserError(f"sort={config.sort}: choose from metric (the best first), started (the newest first)")
    if config.top is None or config.top < 1:
        raise UserError(f"top={config.top}: how many lines the terminal shows is expected, 1 or more")
    for key in ("at_least", "at_most"):
        if config[key] is not None and not isinstance(config[key], int | float):
            raise UserError(f"{key}={config[key]}: a number is expected, or null for no bound")


def _listed(value: object) -> list[str] | None:
    if value is None:
        return None
    return [str(name) for name in value] if not isinstance(value, str) else [value]  # type: ignore[attr-defined]  # a list


def _within(group: Group, metric: str | None, least: float | None, most: float | None) -> bool:
    """Whether a group's mean lies between two bounds; without any, every group does."""
    if least is None and most is None:
        return True
    if metric is None or metric not in group.means:
        return False
    mean = group.means[metric].mean
    return (least is None or mean >= least) and (most is None or mean <= most)


def _notes(found: Gathered, repeated: int) -> list[str]:
    notes = []
    if repeated:
        notes.append(
            f"runs that were made again with the same recipe and seed: {repeated:,}; all are listed, and of each seed "
            "the newest counts for the mean"
        )
    if found.others:
        listed = ", ".join(f"{name} {count:,}" for name, count in found.others.most_common())
        notes.append(f"folders of commands that measure nothing are left out: {listed}")
    if found.unreadable:
        shown = "; ".join(found.unreadable[:5])
        more = f"; and {len(found.unreadable) - 5:,} more" if len(found.unreadable) > 5 else ""
        notes.append(f"folders that cannot be read: {shown}{more}")
    return notes
