"""Several processes from one command: `trainer=ddp` starts them here, `trainer=multi_node` finds them started.

Run: python -m clipkit.train trainer=ddp trainer.devices=4
     torchrun --nnodes 2 --nproc-per-node 8 … -m clipkit.train trainer=multi_node
     srun python -m clipkit.train trainer=multi_node         (in a SLURM job, one task a GPU)

The process that the user starts only watches: it starts one process a device, hands on signals, and ends the others
when one fails. Each job of a multirun does so for itself, with the job's own choices and folder.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from clipkit.errors import UserError
from clipkit.runs.endings import LOST, Failed, Interrupted
from clipkit.runs.job_line import job_line
from clipkit.runs.meeting import PARENT, backend_of, found_place, started_by_launch
from clipkit.runs.progress import as_typed
from clipkit.runs.record import alone_in, mark_failed, release

__all__ = ["supervise", "wanted"]

GRACE_S = (10.0, 20.0)  # for the others when one has failed: to end by themselves, and after SIGTERM
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SHOWN = 15  # lines of a failed process's log


def wanted(trainer: DictConfig) -> int:
    """How many processes this command has to start: 1 where it trains by itself.

    Raises:
        UserError: more devices than there are, or processes were started another way than `trainer` says.
    """
    here = found_place()
    if started_by_launch():
        return 1
    if trainer.processes == "outside":
        if here.ranks == 1 and not _started_outside():
            raise UserError(
                "trainer=multi_node takes the processes that torchrun or srun have started, and there are none: start "
                "it with one of them, or use trainer=ddp on a single machine"
            )
        return 1
    if here.ranks > 1:
        raise UserError(f"{here.ranks} processes were started together: add trainer=multi_node, or start one alone")
    return _devices(trainer)


def _started_outside() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" in os.environ


def _devices(trainer: DictConfig) -> int:
    import torch

    asked, gpus = trainer.devices, torch.cuda.device_count()
    on_gpu = backend_of(trainer) == "nccl"
    if asked == "auto":
        if not on_gpu:
            raise UserError(
                "trainer=ddp takes every GPU, and there is none; for processes on the processor say how many: "
                "trainer.accelerator=cpu trainer.devices=2"
            )
        return gpus
    if not isinstance(asked, int) or asked < 1:
        raise UserError(f"trainer.devices={asked}: a number of devices is expected, 1 or more, or auto")
    if on_gpu and asked > gpus:
        raise UserError(f"trainer.devices={asked}, but this machine has {gpus} GPU{'s' if gpus != 1 else ''}")
    return asked


def supervise(config: DictConfig, count: int) -> float | None:
    """Run this job by `count` processes; returns the score that their run wrote down.

    Raises:
        Failed: one of them failed; the others were ended.
        Interrupted: all stopped in good order after a signal.
    """
    folder = Path(config.run_dir)
    release(alone_in(folder))  # refused before a log is touched; process 0 then takes the folder for itself
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    line = job_line(folder)
    children: list[subprocess.Popen[bytes]] = []
    with _passing_on_signals(children) as asked:
        port = _free_port()
        for rank in range(count):
            children.append(_start(line, logs, rank, count, port))
        status, message = _watch(children, logs, asked)
    for log in logs.glob("process_*.log"):
        if log.stat().st_size == 0:
            log.unlink()
    with suppress(OSError):
        logs.rmdir()
    if status >= 128:
        raise Interrupted("", status)
    if message is not None:
        if (folder / "checkpoints/last.ckpt").is_file():
            message = f"{message}\nContinue with: python -m clipkit.train resume={as_typed(folder)}"
        mark_failed(folder, message, process=children[0].pid)
    if status:
        raise Failed(message, status)  # without a message process 0 has said why, and written it down
    about = json.loads((folder / "run.json").read_text())
    score = about.get("score")
    return None if score is None else float(score)


def _start(line: Sequence[str], logs: Path, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        PARENT: str(os.getpid()),
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if rank == 0:
        return subprocess.Popen(line, env=environment, start_new_session=True)
    with (logs / f"process_{rank}.log").open("wb") as log:  # process 0 speaks for all
        return subprocess.Popen(line, env=environment, start_new_session=True, stdout=log, stderr=log)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def _passing_on_signals(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Processes of a session of their own hear nothing from the terminal: each signal reaches them once, from here.

    Yields the signals that were passed on.
    """
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    former = {number: signal.signal(number, hand_on) for number in PASSED_ON}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _watch(children: Sequence["subprocess.Popen[bytes]"], logs: Path, asked: Sequence[int]) -> tuple[int, str | None]:
    """Wait for all; returns the status of the whole, and what to say where process 0 has not said it."""
    ended_here: set[int] = set()
    while any(child.poll() is None for child in children):
        if any(child.poll() not in (None, 0) for child in children):
            ended_here = _end(children)
        time.sleep(0.05)
    failed = {rank: child.returncode for rank, child in enumerate(children) if rank not in ended_here}
    failed = {rank: status for rank, status in failed.items() if status != 0}
    if not failed:
        return 0, None
    culprit = _culprit(failed)
    status = failed[culprit]
    if -status in asked:
        return 128 - status, None  # told to stop before it had begun
    if status >= 128 or (culprit == 0 and 0 < status != LOST):
        return status, None  # it has said why
    log = logs / f"process_{culprit}.log"
    how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
    said = log.read_text(errors="replace").splitlines()[-SHOWN:] if log.is_file() else []
    last = "".join(f"\n  {line}" for line in said)
    return 2, f"process {culprit} of {len(children)} {how}; the others were ended{':' if last else ''}{last}"


def _culprit(failed: Mapping[int, int]) -> int:
    """Whose fault it is, by exit status: not of those who lost another; process 0's, if it has something to say."""
    return min(failed, key=lambda rank: (failed[rank] == LOST, rank > 0 and failed[rank] > 0, rank))


def _end(children: Sequence["subprocess.Popen[bytes]"]) -> set[int]:
    """Give the rest time to fail for the same reason or in consequence; returns those that had to be ended."""
    told: set[int] = set()
    for seconds, number in zip((*GRACE_S, 5.0), (signal.SIGTERM, signal.SIGKILL, None), strict=True):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            time.sleep(0.05)
        for rank, child in enumerate(children):
            if child.poll() is None and number is not None:
                child.send_signal(number)
                told.add(rank)
    return told
