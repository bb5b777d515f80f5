"""Which process this is among those that were started together, and meeting the others.

The others were started by `launch.py`, by torchrun or by SLURM's srun, which say so in the environment. torch is loaded
only where there are others.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from clipkit.errors import UserError
from clipkit.runs.command_line import quoted, split_flags
from clipkit.runs.compose import compose_config, output_folder

if TYPE_CHECKING:
    from clipkit.ranks import Place

__all__ = ["PARENT", "backend_of", "first_has_left", "found_place", "meet", "meet_others", "started_by_launch"]

PARENT = "CLIPKIT_PARENT"  # in the environment of a process that `launch.supervise` has started: who watches it
AFTER_FIRST_S = 10.0
PR_SET_PDEATHSIG = 1  # prctl.h


def meet_others(name: str, arguments: list[str], multirun: bool) -> list[str]:
    """Where several processes were started to train together: meet them, and use the same folder as process 0."""
    if not any(key in os.environ for key in ("RANK", "SLURM_PROCID")):
        return arguments
    _end_with_parent()
    from clipkit import ranks
    from clipkit.runs.launch import wanted

    if found_place().ranks == 1:
        return arguments
    if multirun:
        raise UserError("a multirun starts its jobs' processes by itself (trainer=ddp): leave torchrun or srun out")
    _, overrides = split_flags(arguments)
    trainer = compose_config(name, [text for text in overrides if not text.startswith("hydra")]).trainer
    wanted(trainer)
    meet(trainer)
    folder = ranks.from_first(lambda: output_folder(name, overrides))
    return [*arguments, f"hydra.run.dir={quoted(folder)}"]


def found_place(environment: Mapping[str, str] = os.environ) -> "Place":
    """Where this process stands, as `supervise`, torchrun or SLURM's srun says; `Place()` if it is alone.

    Raises:
        UserError: the variables contradict each other.
    """
    from clipkit.ranks import Place

    try:
        if PARENT in environment or "TORCHELASTIC_RUN_ID" in environment:
            return Place(
                rank=int(environment["RANK"]),
                ranks=int(environment["WORLD_SIZE"]),
                local_rank=int(environment["LOCAL_RANK"]),
                local_ranks=int(environment["LOCAL_WORLD_SIZE"]),
                machine=int(environment.get("GROUP_RANK", 0)),
                address=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
            )
        if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:  # a batch script itself has no step
            return _found_in_slurm(environment)
    except (KeyError, ValueError) as error:
        raise UserError(f"the variables of torchrun or SLURM are not complete: {error}") from error
    return Place()


def _found_in_slurm(environment: Mapping[str, str]) -> "Place":
    from clipkit.ranks import Place

    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])  # a step may be part of a job
    machines = int(environment.get("SLURM_STEP_NUM_NODES") or environment["SLURM_NNODES"])
    if tasks % machines:
        raise UserError(f"SLURM runs {tasks} tasks on {machines} machines: as many on each are needed")
    job = int(environment["SLURM_JOB_ID"])
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        ranks=tasks,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_ranks=tasks // machines,
        machine=int(environment["SLURM_NODEID"]),
        address=environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT") or 15000 + job % 10000),
    )


def _first_host(listed: str) -> str:
    """`gpu[07-09,12]-ib,cpu1` -> `gpu07-ib`."""
    found = re.match(r"(?:[^\[,]|\[[^\]]+\])+", listed)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST={listed}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def started_by_launch() -> bool:
    """Whether `supervise` has started this process."""
    return PARENT in os.environ


def _end_with_parent() -> None:
    """Be told to stop when the process that watches this one is killed (Linux)."""
    if started_by_launch() and sys.platform == "linux":
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ[PARENT]):
            sys.exit(128 + signal.SIGTERM)  # it was killed before


def backend_of(trainer: DictConfig) -> str:
    """How processes exchange tensors: "nccl" between GPUs, else "gloo"."""
    import torch

    on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.device_count() > 0)
    return "nccl" if on_gpu else "gloo"


def meet(trainer: DictConfig) -> None:
    """Join the processes that were started together with this one.

    Raises:
        UserError: this process sees no GPU of its own, or the others cannot be reached.
    """
    import torch

    from clipkit.ranks import join

    own, backend = found_place(), backend_of(trainer)
    if backend == "nccl" and own.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {own.rank} is number {own.local_rank} on its machine (counted from 0) and sees "
            f"{torch.cuda.device_count()} GPUs: start one a GPU, each of which sees all GPUs of its machine (in SLURM "
            "--gpus-per-node and --ntasks-per-node with the same number, without --gpus-per-task)"
        )
    join(own, backend=backend)


def first_has_left() -> bool:
    """Process 0 speaks for all that torchrun or srun have started: the others are told to end once it has left.

    They wait for that, with their exit status in hand; who is not told has found something that process 0 has not.
    """
    other = any(os.environ.get(key, "0") != "0" for key in ("RANK", "SLURM_PROCID"))
    if not other or started_by_launch():
        return False
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    end = time.monotonic() + AFTER_FIRST_S
    while not told and time.monotonic() < end:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to the end: the status has to be this process's own
    return bool(told)
