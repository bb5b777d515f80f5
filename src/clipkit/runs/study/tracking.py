"""A whole sweep as one run at W&B or in TensorBoard: a step a trial, the best so far, at the end a table and figures.

The trials that are runs of their own stand beside it, with `logger.group=NAME logger.job_type=trial`.

Used by: clipkit.sweep
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from clipkit.runs.build import build_loggers
from clipkit.runs.record import read_json, write_json
from clipkit.runs.tracking import Findings, Followed, Other, Row, Tracker, new_id

__all__ = ["Ended", "SweepTracking"]

STATUSES = {"finished": 0, "complete": 0, "pruned": 1, "failed": 2}  # as they are drawn


class Ended(NamedTuple):
    """A trial that has ended: finished (or complete), pruned or failed, after so many seconds.

    `values` is None, or lacks some, where it has failed or was pruned.
    """

    number: int
    params: Mapping[str, Any]
    values: Mapping[str, float] | None
    status: str
    seconds: float


class SweepTracking:
    """Follows a sweep with the trackers of `config.logger`; with `logger=csv` it does nothing.

    Metrics: `params/NAME` where the value is a number, the values by their names, `best/NAME` so far, `status` (0
    finished or complete, 1 pruned, 2 failed) and `seconds`, all over the number of the trial.

    Args:
        config: the sweep's own, with the group `logger`.
        folder: of the sweep; `tracking.json` there keeps the id under which it is continued.
        name: of the sweep; also the group that its trials share.
        objectives: the names of the values, each with "maximize" or "minimize".
        before: when the sweep is continued, its trials so far.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        name: str,
        objectives: Mapping[str, str],
        *,
        before: Sequence[Ended] = (),
    ) -> None:
        wrong = {way for way in objectives.values() if way not in ("maximize", "minimize")}
        if wrong:
            raise ValueError(f"objectives are maximized or minimized, not {wrong}")
        own = config.copy()
        OmegaConf.update(own, "logger.job_type", None, force_add=True)  # what it says is for the trials
        self.objectives = dict(objectives)
        self._best: dict[str, float] = {}
        self._next = 0
        self._trackers = [one if isinstance(one, Tracker) else Other(one) for one in build_loggers(own)]
        if not self._trackers:
            return
        place = folder / "tracking.json"
        known = read_json(place) or {}
        write_json(place, {"wandb_id": known.get("wandb_id") or new_id()})
        plain = OmegaConf.to_container(own, resolve=True)
        assert isinstance(plain, dict)
        followed = Followed(
            folder=folder.absolute(),
            id=(read_json(place) or {})["wandb_id"],
            name=name,
            group=name,
            job_type="sweep",
            config={**{str(key): value for key, value in plain.items()}, "objectives": self.objectives},
            axis="trial",
        )
        rows = [self._row(trial) for trial in before]
        for tracker in self._trackers:
            tracker.open(followed, resumed_at=self._next if rows or known else None, before=rows)

    def trial(self, ended: Ended) -> None:
        """One more has ended."""
        row = self._row(ended)
        for tracker in self._trackers:
            tracker.log_row(row)
            tracker.save()

    def close(
        self,
        figures: Mapping[str, Figure] | None = None,
        table: pd.DataFrame | None = None,
        *,
        status: str = "finished",
    ) -> None:
        """The sweep has ended, `finished`, `failed` or `interrupted`: the table of all trials, and the figures."""
        best = {f"best/{name}": value for name, value in self._best.items()}
        findings = Findings(
            metrics=best, tables={} if table is None else {"trials": table}, figures=dict(figures or {})
        )
        for tracker in self._trackers:
            if table is not None or figures:
                tracker.log_findings(self._next, findings)
            tracker.close(status)
        self._trackers = []

    def _row(self, ended: Ended) -> Row:
        """Trials that run at once end in any order: one that ends late stands behind those that have ended before."""
        found = {name: float(value) for name, value in (ended.values or {}).items()}
        for name, way in self.objectives.items():
            if name in found and STATUSES[ended.status] == 0:
                choose = max if way == "maximize" else min
                self._best[name] = choose(found[name], self._best.get(name, found[name]))
        numbers = {
            f"params/{name}": float(value)
            for name, value in ended.params.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        best = {f"best/{name}": value for name, value in self._best.items()}
        at, self._next = self._next, self._next + 1
        more = {"status": STATUSES[ended.status], "seconds": ended.seconds, "number": ended.number}
        return Row(at, {**numbers, **found, **best, **more})
