"""Trials that are runs of `clipkit.train`, a process each: whatever a run can do, a trial can, and it resumes like one.

Used by: clipkit.sweep
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import TrialPruned

from clipkit.errors import UserError
from clipkit.runs.command_line import quoted
from clipkit.runs.record import read_json, write_json

__all__ = ["Runs"]

LOOK_EVERY_S = 0.5
BUSY = "another process is at work"


class Runs:
    """Starts one run after the other, and ends those that are hopeless.

    Args:
        metric: whose validation is reported; one that no stage logs is never reported.
        logging: overrides that only say where numbers go.
        stopped: raises `Interrupted` where somebody has told the sweep to end.
    """

    def __init__(self, metric: str, logging: Sequence[str], *, stopped: Callable[[], None]) -> None:
        self.metric, self.logging, self.stopped = metric, list(logging), stopped
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        overrides: Sequence[str],
        folder: Path,
        *,
        trial: Mapping[str, Any],
        on_epoch: Callable[[int, dict[str, float]], None],
    ) -> dict[str, float]:
        """Start the run, or continue what an interrupted sweep has left of it; returns its metrics.

        Args:
            overrides: of `clipkit.train`.
            folder: of the run; what it prints goes to `log.txt` in it.
            trial: what its `run.json` is to say of the trial.
            on_epoch: told of each validation; what it raises ends the run.

        Raises:
            UserError: the run has failed; says why.
        """
        folder.mkdir(parents=True, exist_ok=True)
        line = [*overrides, *self.logging, f"hydra.run.dir={quoted(str(folder))}", "resume=auto"]
        try:
            status = self._follow(line, folder, on_epoch)
            while status and BUSY in _last_words(folder):  # of a sweep that was killed: it finishes what it has begun
                time.sleep(LOOK_EVERY_S)
                self.stopped()
                status = self._follow(line, folder, on_epoch)
        except TrialPruned:
            _mark(folder, "pruned", trial)
            raise
        record = read_json(folder / "run.json") or {}
        if status or record.get("status") != "finished":
            _mark(folder, "failed", trial)
            raise UserError(str(record.get("error") or _last_words(folder) or f"the run ended with status {status}"))
        _mark(folder, "finished", trial)
        metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text())
        return metrics

    def stop(self) -> None:
        """Tell the run that is going on to save and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _follow(self, line: Sequence[str], folder: Path, on_epoch: Callable[[int, dict[str, float]], None]) -> int:
        with (folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clipkit.train", *line],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is handed on by `stop`, once
            )
        seen = _Seen(folder / "metrics.csv", self.metric)
        try:
            while self._process.poll() is None:
                time.sleep(LOOK_EVERY_S)
                self.stopped()
                for number, value in seen.new():
                    on_epoch(number, {self.metric: value})
        except BaseException:  # pruned, or the sweep is told to stop: the run saves and ends
            self.stop()
            raise
        return self._process.returncode


class _Seen:
    """The validations of a `metrics.csv` that is being written."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric, self.told = path, metric, 0

    def new(self) -> Iterator[tuple[int, float]]:
        """Number (from 1) and value of those that were not there the last time."""
        try:
            with self.path.open(newline="") as file:
                values = [row["value"] for row in csv.DictReader(file) if row["name"] == self.metric]
        except (OSError, KeyError, csv.Error):
            return
        for number, value in list(enumerate(values, 1))[self.told :]:
            self.told = number
            try:
                yield number, float(value)
            except (TypeError, ValueError):
                self.told = number - 1  # half a row
                return


def _mark(folder: Path, status: str, trial: Mapping[str, Any]) -> None:
    record = read_json(folder / "run.json") or {}
    if status != "failed":
        record.pop("error", None)  # of a pruned one: that it was told to stop
    write_json(folder / "run.json", {**record, "status": status, "trial": dict(trial)})


def _last_words(folder: Path) -> str:
    """The last message in what the run has printed."""
    try:
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else lines[-1] if lines else ""
