"""Whose fault it is when one of several processes fails, and what is said."""

import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.runs.endings import LOST
from clipkit.runs.launch import _watch


def ending(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import os, signal, sys, time; {code}"])


@pytest.mark.parametrize(
    ("codes", "status", "said"),
    [
        (("pass", "pass"), 0, None),
        (("sys.exit(2)", "sys.exit(2)"), 2, None),  # a mistake that all find: process 0 says it
        (("time.sleep(0.5); sys.exit(2)", "sys.exit(2)"), 2, None),  # also where it is the last to do so
        ((f"sys.exit({LOST})", "time.sleep(0.3); sys.exit(1)"), 2, "process 1 of 2 failed with status 1"),
        ((f"sys.exit({LOST})", "os.kill(os.getpid(), signal.SIGKILL)"), 2, "process 1 of 2 was ended by signal 9"),
        (("os.kill(os.getpid(), signal.SIGKILL)", f"sys.exit({LOST})"), 2, "process 0 of 2 was ended by signal 9"),
        (("sys.exit(1)", f"sys.exit({LOST})"), 1, None),
        (("sys.exit(143)", "sys.exit(143)"), 143, None),
    ],
)
def test_the_process_at_fault_is_named_once(
    codes: tuple[str, str], status: int, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "process_1.log").write_text("what it printed\n")
    found, message = _watch([ending(code) for code in codes], tmp_path, [])
    assert found == status
    assert (message is None) == (said is None)
    if said is not None:
        assert said in str(message)
        assert ("what it printed" in str(message)) == ("process 1" in said)


def test_a_signal_before_the_beginning_is_no_failure(tmp_path: Path) -> None:
    children = [ending("os.kill(os.getpid(), signal.SIGUSR1)") for _ in range(2)]
    assert _watch(children, tmp_path, [10]) == (138, None)
