"""The processes of a sweep on this machine: one or several, told to stop together, shown as one.

Used by: clipkit.sweep
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from clipkit.data.decoding import available_cores
from clipkit.errors import UserError
from clipkit.runs.endings import Interrupted
from clipkit.runs.machine import choose_device, prepare_machine
from clipkit.runs.progress import ProgressReporter, as_typed, console
from clipkit.runs.record import Busy, Run, read_json, write_json
from clipkit.runs.study.following import Following
from clipkit.runs.study.plan import Plan
from clipkit.runs.study.storage import open_study
from clipkit.runs.study.worker import Worker

__all__ = ["Stopping", "described", "make_trials", "open_sweep", "processes_for"]

MOST = 16  # processes that work on one SQLite file
ATTEMPTS = 3  # at finishing what a process that was killed has left


class Stopping:
    """Ctrl-C, SIGTERM and SIGUSR1 end a sweep after the epoch that is going on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.received, self._parent = folder, 0, os.getppid()

    def watch(self) -> None:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come, or the process that started this one is gone."""
        if self.received or os.getppid() != self._parent:
            line = f"python -m clipkit.sweep resume={as_typed(self.folder)}"
            raise Interrupted(f"stopped. Continue with: {line}", 128 + (self.received or signal.SIGTERM))


def open_sweep(config: DictConfig, overrides: list[str], asked: int) -> Run | None:
    """The sweep's record; None if another process keeps it already, and this one only helps.

    Raises:
        UserError: there is a sweep, and neither `resume` nor `overwrite` says what to do with it; or another's recipe.
    """
    folder = Path(config.run_dir)
    before = read_json(folder / "run.json") or {}
    if config.resume is not None and before.get("status") == "finished" and before.get("trials", 0) < asked:
        write_json(folder / "run.json", {**before, "status": "interrupted"})  # there is more to do
    try:
        return Run(config, overrides, resume=config.resume is not None)
    except Busy:
        if config.resume != "auto":
            raise UserError(
                f"another process is at work on the sweep in {folder}: to help it, add resume=auto; or choose another "
                "name"
            ) from None
        return None


def make_trials(
    plan: Plan, config: DictConfig, *, processes: int, stopping: Stopping, following: Following | None
) -> None:
    """Make what is left of the sweep's trials.

    Args:
        plan: of them.
        config: of the sweep.
        processes: how many trials are made at a time.
        stopping: asked after each epoch.
        following: is told of the trials; a process that only helps has none.

    Raises:
        UserError: nothing works, or processes keep being killed.
    """
    asked = config.sweep.trials
    study = open_study(Path(config.run_dir), plan, config.sweep, seed=config.seed)
    done, _ = study.counts()
    if following is not None:
        following.begin(list(study.trials()))
    study.close()
    if done >= asked:
        return
    with ProgressReporter().showing() as progress:
        screen = _Screen(plan, progress, asked, done, following=following)
        if processes == 1:
            _work(plan, config, stopping, screen)
            return
        began = time.monotonic()
        for _ in range(ATTEMPTS):
            _together(plan, config, min(processes, asked - done), stopping, screen)
            study = open_study(Path(config.run_dir), plan, config.sweep, seed=config.seed)
            done, elsewhere = study.counts()
            study.close()
            minutes = config.sweep.minutes
            if done + elsewhere >= asked or (minutes is not None and time.monotonic() - began > 60 * minutes):
                return
    raise UserError(f"processes of this sweep keep being killed: {done} of {asked} trials are done. Too little memory?")


def _work(plan: Plan, config: DictConfig, stopping: Stopping, tell: Callable[[int, Mapping[str, Any]], None]) -> None:
    prepare_machine(1 if config.trainer.threads is None else config.trainer.threads)
    study = open_study(Path(config.run_dir), plan, config.sweep, seed=config.seed)
    try:
        Worker(plan, study, config, stopped=stopping.check).work(tell)
    finally:
        study.close()


def _together(plan: Plan, config: DictConfig, processes: int, stopping: Stopping, screen: "_Screen") -> None:
    """Fork: the libraries are loaded once, and nothing has been computed yet."""
    context = multiprocessing.get_context("fork")
    said: Any = context.Queue()

    def child() -> None:
        own = Stopping(stopping.folder)
        own.watch()
        console.quiet = True
        try:
            _work(plan, config, own, lambda number, record: said.put((number, dict(record))))
        except UserError as error:
            said.put(("error", str(error)))
        except Interrupted:
            pass
        said.close()
        said.join_thread()

    workers = [context.Process(target=child) for _ in range(processes)]
    for worker in workers:
        worker.start()
    problem: str | None = None
    try:
        while any(worker.is_alive() for worker in workers) or not said.empty():
            stopping.check()
            try:
                number, record = said.get(timeout=0.1)
            except Empty:
                continue
            if number == "error":
                problem = record
                break
            screen(number, record)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()
    if problem is not None:
        raise UserError(problem)


def processes_for(plan: Plan, config: DictConfig) -> int:
    """How many trials are made at a time: as asked, or one a core where all are heads and there is no GPU.

    Raises:
        UserError: no such number.
    """
    asked = config.sweep.processes
    if asked != "auto" and (not isinstance(asked, int) or asked < 1):
        raise UserError(f"sweep.processes={asked}: a number from 1 is expected, or auto")
    if not isinstance(config.sweep.trials, int) or config.sweep.trials < 1:
        raise UserError(f"sweep.trials={config.sweep.trials}: a number from 1 is expected")
    if asked != "auto":
        return int(asked)
    if not all(plan.of_heads) or choose_device(config.trainer.accelerator).type != "cpu":
        return 1
    return max(1, min(available_cores(), MOST))


def described(plan: Plan, config: DictConfig, processes: int) -> str:
    """What is about to happen, in a line."""
    kinds = "heads on stored features" if all(plan.of_heads) else "runs"
    if any(plan.of_heads) and not all(plan.of_heads):
        kinds = "heads on stored features, and runs"
    many = f", {processes} at a time" if processes > 1 else ""
    searched = ", ".join(one.key.removeprefix("approach.") for one in plan.present)
    judged = ", ".join(f"{one.direction} {one.metric}" for one in plan.objectives)
    return f"{config.sweep.trials:,} trials ({kinds}{many}) of {searched}: {judged}"


class _Screen:
    """A bar of trials; a line where one is better than all before it, or has failed."""

    def __init__(
        self, plan: Plan, progress: ProgressReporter, asked: int, done: int, *, following: Following | None
    ) -> None:
        self.following = following
        self.objective, self.progress, self.asked, self.done = plan.objectives[0], progress, asked, done
        self.best: float | None = None

    def __call__(self, number: int, record: Mapping[str, Any]) -> None:
        self.done += 1
        if record["state"] == "failed":
            console.print(f"  trial {number} failed: {record['error']}", soft_wrap=True, markup=False)
        elif record["values"] is not None:
            value, sign = record["values"][0], 1 if self.objective.maximize else -1
            if self.best is None or sign * value > sign * self.best:
                self.best = value
                shown = ", ".join(f"{k.split('.')[-1]} {_short(v)}" for k, v in record["params"].items())
                console.print(f"  trial {number:>4}  {self.objective.metric} {value:.4f}  {shown}", soft_wrap=True)
        self.progress("trials", self.done, self.asked)
        if self.following is not None:
            self.following.trial(number, record)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
