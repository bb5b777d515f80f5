"""Jobs of a multirun that share this machine (hydra/launcher=joblib): each a process of its own, with its share of it.

joblib keeps its processes from one job to the next. Here such a process only watches: it starts the job's own command
line as a child, so that no job finds anything of the one before, and its numbers are those of a run that was started
alone with as many threads.

Run: python -m clipkit.train -m approach=mlp,aamp_mlp seed=0,1,2 hydra/launcher=joblib hydra.launcher.n_jobs=4
"""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from clipkit.errors import UserError
from clipkit.runs.child import HANDED_ON, hear_of_parents_end, run_child, status_of
from clipkit.runs.command_line import split_flags
from clipkit.runs.endings import Failed
from clipkit.runs.job_line import job_line
from clipkit.runs.sweeps import key_of, left_to_experiment

__all__ = ["run_apart", "share_machine", "waiting_for_jobs"]

SHARED_BY = "CLIPKIT_JOBS_AT_ONCE"  # in the environment of jobs: how many run at a time (read by clipkit.ranks)
ON_PROCESSOR = ("trainer=cpu", "trainer.accelerator=cpu", "device=cpu")
told: list[int] = []  # the signals that have reached this process, be it joblib's or the one that they belong to


def share_machine(arguments: Sequence[str]) -> list[str]:
    """The command line with a number of jobs at a time, at most as many as there are; its jobs find it as `SHARED_BY`.

    joblib's own -1 is as many as there are cores; on a machine with GPUs it becomes one job a GPU.

    Raises:
        UserError: `hydra.launcher.n_jobs` is no number of jobs.
    """
    _, overrides = split_flags(arguments)
    said = {key_of(text): text.partition("=")[2] for text in overrides}
    launcher = said.get("hydra/launcher")
    if launcher not in ("joblib", "submitit_local"):
        return list(arguments)
    jobs = _count(overrides)
    if launcher == "submitit_local":  # starts all of them
        os.environ[SHARED_BY] = str(jobs)
        return list(arguments)
    from joblib import effective_n_jobs  # type: ignore[import-untyped]  # it has no types

    asked = said.get("hydra.launcher.n_jobs", "-1")
    try:
        at_once = effective_n_jobs(int(asked))
    except ValueError:  # no number, or 0
        raise UserError(
            f"hydra.launcher.n_jobs={asked}: a number of jobs that run at a time is expected (-1: as many as there are "
            "cores, or GPUs)"
        ) from None
    gpus = [] if any(text in ON_PROCESSOR for text in overrides) else _gpus()
    if asked == "-1" and gpus:
        at_once = len(gpus)
    at_once = min(at_once, jobs)
    os.environ[SHARED_BY] = str(at_once)
    kept = [text for text in arguments if key_of(text) != "hydra.launcher.n_jobs"]
    return [*kept, f"hydra.launcher.n_jobs={at_once}"]


def run_apart(config: DictConfig) -> float | None:
    """Run this job by a process of its own; returns the score that its run wrote down.

    What the job says goes to `logs/output.log` in its folder.

    Raises:
        UserError: the job failed.
        Failed: it was told to stop, before or after it began.
    """
    _listen()
    if told:
        raise Failed(None, 128 + told[0])
    hydra, folder = HydraConfig.get(), Path(str(config.run_dir))
    log = folder / "logs" / "output.log"
    who = f"job {hydra.job.num}, {hydra.sweep.dir}/{hydra.sweep.subdir}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with _own_gpu(config, Path(str(hydra.sweep.dir))) as gpu:
            print(f"  {who} begins", flush=True)
            ended = run_child(job_line(folder), told, environment={**os.environ, **gpu}, log=log)
    except OSError as error:
        raise UserError(f"{who} could not be started: {error}") from error
    if os.getppid() != _listen():
        os._exit(128 + signal.SIGTERM)  # nobody waits for an answer
    status, about = status_of(ended), _about(folder)
    if status == 0:
        print(f"  {who} is finished", flush=True)
        score = about.get("score")
        return None if score is None else float(str(score))
    if told and status >= 128:
        raise Failed(None, status)
    why = str(about.get("error") or "") if about.get("status") != "running" else ""
    why = why or (f"its process was ended by signal {status - 128}" if status > 128 else f"exit status {status}")
    if about.get("status") == "running":
        from clipkit.runs.record import mark_failed  # here: it takes seconds to load

        mark_failed(folder, why, process=int(str(about.get("process"))))
    raise UserError(f"{who}: {why}\n  with {' '.join(hydra.overrides.task)}; all that it said: {log}")


@contextmanager
def waiting_for_jobs() -> Iterator[None]:
    """In the process that joblib's belong to: told to stop, tell them, wait until each job has saved, and exit."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in multiprocessing.active_children():
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    former = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        yield
    except Exception:  # of a job that was stopped, or of joblib, whose processes heard it before they could listen
        if not told:
            raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if told:
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + told[0])


@cache
def _listen() -> int:
    """Note signals from now on, between jobs too, and end with the process that waits for the jobs; returns its id."""
    above = os.getppid()

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if os.getppid() != above:
            os._exit(128 + number)

    for number in HANDED_ON:
        signal.signal(number, note)
    hear_of_parents_end()
    return above


def _count(overrides: Sequence[str]) -> int:
    """How many jobs a command line is."""
    parser, count = OverridesParser.create(), 1
    for text in [*left_to_experiment(overrides, multirun=True), *overrides]:
        override = parser.parse_override(text)
        if override.is_sweep_override():
            with suppress(HydraException):  # an interval: its sweeper knows
                count *= max(1, len(list(override.sweep_string_iterator())))
    return count


def _about(folder: Path) -> dict[str, object]:
    try:
        about: dict[str, object] = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return about


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; torch is not asked."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    ask = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.split()


@contextmanager
def _own_gpu(config: DictConfig, sweep: Path) -> Iterator[dict[str, str]]:
    """One of several GPUs, where the job takes one: the next that no other job has, as long as there is one.

    Each job at work locks one byte of a file in the multirun's folder, which the system gives free when it ends.
    """
    trainer = config.get("trainer")
    gpus = _gpus() if trainer is None or (trainer.accelerator != "cpu" and trainer.devices == 1) else []
    if len(gpus) < 2:
        yield {}
        return
    with (sweep / ".places").open("a") as file:
        place = 0
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                break
            except BlockingIOError:
                place += 1
        yield {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}
