"""A sweep in Weights & Biases or TensorBoard, opened when its first trial has ended: processes are forked before that.

Used by: clipkit.sweep
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from clipkit.runs.endings import Interrupted
from clipkit.runs.study.plan import Plan
from clipkit.runs.study.tracking import Ended, SweepTracking

__all__ = ["Following"]

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Following:
    """Hands trials on to the loggers of `config.logger`; as a context, it tells them how the sweep has ended.

    Args:
        config: of the sweep.
        plan: its objectives name the values.
    """

    def __init__(self, config: DictConfig, plan: Plan) -> None:
        self.config, self.plan = config, plan
        self._before: list[FrozenTrial] = []
        self._tracking: SweepTracking | None = None

    def __enter__(self) -> "Following":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close("interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")

    def begin(self, before: list[FrozenTrial]) -> None:
        """There are these trials already; others follow."""
        self._before = before

    def trial(self, number: int, record: Mapping[str, Any]) -> None:
        """One has ended; `record` as a worker tells it."""
        named = self._named(record["values"])
        self._open().trial(Ended(number, record["params"], named, record["state"], float(record["seconds"])))

    def close(
        self, status: str, figures: Mapping[str, Figure] | None = None, table: pd.DataFrame | None = None
    ) -> None:
        """The sweep has ended, `finished`, `failed` or `interrupted`."""
        if self._tracking is not None:
            self._tracking.close(figures, table, status=status)

    def _named(self, values: list[float] | None) -> dict[str, float] | None:
        if values is None:
            return None
        return {one.metric: value for one, value in zip(self.plan.objectives, values, strict=True)}

    def _open(self) -> SweepTracking:
        if self._tracking is None:
            folder = Path(self.config.run_dir)
            ended = [
                Ended(
                    trial.number,
                    trial.params,
                    self._named(trial.values) if trial.state is TrialState.COMPLETE else None,
                    STATES[trial.state],
                    trial.duration.total_seconds() if trial.duration is not None else 0.0,
                )
                for trial in self._before
                if trial.state in STATES
            ]
            ways = {one.metric: one.direction for one in self.plan.objectives}
            self._tracking = SweepTracking(self.config, folder, folder.name, ways, before=ended)
        return self._tracking
