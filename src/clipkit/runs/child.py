"""A command as a child process, which hears the signals that reach this one and ends when this one is gone.

Used by: clipkit.runs.grid_jobs, clipkit.runs.repeating
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

__all__ = ["HANDED_ON", "hear_of_parents_end", "run_child", "status_of"]

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LOOK_S = 1.0  # between two looks at whether the process above is still there
PR_SET_PDEATHSIG = 1  # prctl.h


def run_child(
    line: Sequence[str],
    told: list[int],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Run a command line to its end; returns the ended process.

    Args:
        line: the program and its arguments.
        told: the signals that reach this process, in order; each is handed on to the child.
        folder: where the child works; None: here.
        environment: of the child; None: this one's.
        log: takes what the child says, after what is there already; None: it speaks where this process does.
    """
    above = os.getppid()
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None = None) -> None:
        told.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    former = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        with ExitStack() as files:
            output = files.enter_context(log.open("ab")) if log is not None else None
            child = subprocess.Popen(
                line,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it hears nothing from the terminal: each signal reaches it once, from here
                preexec_fn=_in_child(os.getpid()),
            )
        if told:
            child.send_signal(told[-1])  # it came while the child was being made
        orphaned = False
        while child.poll() is None:
            try:
                child.wait(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                if not orphaned and os.getppid() != above:
                    orphaned = True
                    hand_on(signal.SIGTERM)
        return child
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def status_of(child: "subprocess.Popen[bytes]") -> int:
    """Its exit status as a shell counts it: 128 + the signal that ended it."""
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def hear_of_parents_end() -> None:
    """Be sent SIGTERM when the process above this one ends, however it does (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _in_child(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the command."""

    def begin() -> None:
        hear_of_parents_end()
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)  # too late to hear of it

    return begin
