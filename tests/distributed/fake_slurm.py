"""Stand-ins for SLURM's commands, as far as clipkit's scripts and submitit use them. All "nodes" are this machine.

Run: install(folder) writes `sbatch`, `srun`, `scontrol`, `scancel`, `squeue` and `sacct` there; put it first on PATH
and name a folder for the jobs' records in FAKE_SLURM. A job's first run with `--signal` gets that signal once the file
pattern in FAKE_SLURM_WARN (with %a) matches, as if its time were nearly over.
What they do was taken from SLURM's manual pages and the variables that its source sets.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "srun", "scontrol", "scancel", "squeue", "sacct")
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
KILL_WAIT_S = 30  # between SIGTERM and SIGKILL
NODES = "127.0.0.[{}-{}]"  # names that lead to this machine, listed as SLURM lists names


def install(folder: Path) -> None:
    """Write the commands."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{Path(__file__)}" {name} "$@"\n')
        path.chmod(0o755)


def jobs() -> Path:
    """Where the jobs are written down."""
    return Path(os.environ["FAKE_SLURM"])


def read(job: str) -> dict[str, Any]:
    return dict(json.loads((jobs() / f"{job}.json").read_text()))


def write(job: str, **values: Any) -> None:
    path = jobs() / f"{job}.json"
    known = read(job) if path.exists() else {}
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_text(json.dumps(known | values, indent=1))
    part.replace(path)


def parser() -> argparse.ArgumentParser:
    """The options that `sbatch` and `srun` share; any other is an error, as in the real ones."""
    known = argparse.ArgumentParser()
    for name in ("--job-name", "--partition", "--time", "--signal", "--output", "--error", "--open-mode", "--mem"):
        known.add_argument(name)
    for name in ("--cpus-per-task", "--gpus-per-node", "--nodes", "--ntasks", "--ntasks-per-node"):
        known.add_argument(name, type=int)
    known.add_argument("--array")
    known.add_argument("--wckey")
    known.add_argument("--requeue", action="store_true")
    known.add_argument("--unbuffered", action="store_true")
    known.add_argument("--kill-on-bad-exit", nargs="?", const=1, type=int, default=0)
    known.add_argument("line", nargs=argparse.REMAINDER)
    return known


def sbatch(arguments: Sequence[str]) -> int:
    """Take the script in, and start it behind the caller's back: one job, or the jobs of an array."""
    given = parser().parse_args(arguments)
    script = Path(given.line[0])
    head: list[str] = []
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            head += shlex.split(line.removeprefix("#SBATCH "), comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    asked = vars(parser().parse_args([*head, *arguments]))
    jobs().mkdir(parents=True, exist_ok=True)
    number = 1000 + len(list(jobs().glob("*.sh"))) * 10
    copy = jobs() / f"{number}.sh"
    copy.write_text(script.read_text())
    last = int(asked["array"].partition("%")[0].partition("-")[2]) if asked["array"] else None
    for index in range(1 if last is None else last + 1):
        own = str(number + index)  # a job of an array has a number of its own as well
        array = {} if last is None else {"array_job": number, "array_task": index}
        write(own, state="PENDING", script=str(copy), asked=asked, cwd=os.getcwd(), restarts=0, **array)
        subprocess.Popen(
            [sys.executable, "-S", __file__, "slurmd", own],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(jobs() / "slurmd.log").open("a"),
        )
    print(f"Submitted batch job {number}")
    return 0


def slurmd(arguments: Sequence[str]) -> int:
    """Run one job's script, again for as long as it is put back into the queue."""
    (job,) = arguments
    while True:
        status = _run_once(job)
        about = read(job)
        if about["state"] != "REQUEUED":
            write(job, state="COMPLETED" if status == 0 else "FAILED", status=status, statuses=_statuses(about, status))
            return 0
        write(job, restarts=about["restarts"] + 1, statuses=_statuses(about, status))


def _statuses(about: dict[str, Any], status: int) -> list[int]:
    return [*about.get("statuses", []), status]


def _run_once(job: str) -> int:
    about = read(job)
    asked, restarts = about["asked"], about["restarts"]
    nodes = asked["nodes"] or 1
    tasks = asked["ntasks"] or nodes * (asked["ntasks_per_node"] or 1)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {
        "SLURM_JOB_ID": job,
        "SLURM_JOBID": job,
        "SLURM_JOB_NAME": asked["job_name"] or "batch",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": _node_list(nodes),
        "SLURM_NTASKS": str(tasks),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",  # the script itself; there is no SLURM_STEP_ID
        "SLURM_LOCALID": "0",
        "SLURM_SUBMIT_DIR": about["cwd"],
    }
    if asked["ntasks_per_node"]:
        environment["SLURM_NTASKS_PER_NODE"] = str(asked["ntasks_per_node"])
    if restarts:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    if "array_job" in about:
        environment["SLURM_ARRAY_JOB_ID"] = str(about["array_job"])
        environment["SLURM_ARRAY_TASK_ID"] = str(about["array_task"])
    mode = "ab" if asked["open_mode"] == "append" or restarts == 0 else "wb"
    output = Path(about["cwd"]) / _filled(asked["output"] or "slurm-%j.out", environment)
    _wait_for_folder(output.parent)
    out = output.open(mode)
    err = out if asked["error"] is None else (Path(about["cwd"]) / _filled(asked["error"], environment)).open(mode)
    line = ["/bin/bash", about["script"], *asked["line"][1:]]
    streams: dict[str, Any] = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL}
    child = subprocess.Popen(line, cwd=about["cwd"], env=environment, start_new_session=True, **streams)
    write(job, state="RUNNING", process=child.pid)
    warned = restarts > 0
    ending = False
    while child.poll() is None:
        time.sleep(0.05)
        if not ending and read(job)["state"] == "REQUEUED":
            ending = True
            time.sleep(0.3)
            _send(job, "TERM")
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
        pattern = os.environ.get("FAKE_SLURM_WARN", "").replace("%a", str(about.get("array_task", 0)))
        if asked["signal"] and pattern and not warned and list(Path(about["cwd"]).glob(pattern)):
            warned = True
            _send(job, asked["signal"].partition("@")[0])
    _wait_for_tasks(job)
    return child.returncode


def _wait_for_folder(folder: Path) -> None:
    """submitit makes it once `sbatch` has answered, and a real queue takes longer than that."""
    end = time.monotonic() + 30
    while not folder.is_dir() and time.monotonic() < end:
        time.sleep(0.02)


def _wait_for_tasks(job: str) -> None:
    """A job is over when its tasks are; they get SIGKILL if they take too long."""
    end = time.monotonic() + KILL_WAIT_S
    while left := [task for task in read(job).get("tasks", []) if _runs(task)]:
        if time.monotonic() > end:
            for task in left:
                os.kill(task, signal.SIGKILL)
        time.sleep(0.05)


def _runs(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def srun(arguments: Sequence[str]) -> int:
    """Start a step's tasks together; the highest of their statuses is the step's."""
    asked = parser().parse_args(arguments)
    nodes = asked.nodes or int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = asked.ntasks or int(os.environ["SLURM_NTASKS"])
    job, each = os.environ["SLURM_JOB_ID"], -(-tasks // nodes)
    children: list[subprocess.Popen[bytes]] = []
    for number in range(tasks):
        environment = {
            **os.environ,
            "SLURM_STEP_ID": "0",
            "SLURM_STEPID": "0",
            "SLURM_STEP_NODELIST": _node_list(nodes),
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_NTASKS": str(tasks),
            "SLURM_NNODES": str(nodes),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number % each),
            "SLURM_NODEID": str(number // each),
        }
        streams: dict[str, Any] = {}
        for stream, path in (("stdout", asked.output), ("stderr", asked.error)):
            if path is not None:
                streams[stream] = os.open(_filled(path, environment), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        children.append(subprocess.Popen(asked.line, env=environment, start_new_session=True, **streams))
    write(job, tasks=[child.pid for child in children])
    ending: float | None = None
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        bad = any(child.poll() not in (None, 0) for child in children)
        for child in children:
            if child.poll() is None and bad and asked.kill_on_bad_exit and ending is None:
                child.terminate()
            elif child.poll() is None and ending is not None and time.monotonic() - ending > KILL_WAIT_S:
                child.kill()
        if bad and ending is None and asked.kill_on_bad_exit:
            ending = time.monotonic()
    write(job, tasks=[])
    statuses = [child.returncode if child.returncode >= 0 else 128 - child.returncode for child in children]
    for number, status in enumerate(statuses):
        if status:
            print(f"srun: error: task {number}: Exited with exit code {status}", file=sys.stderr)
    return max(statuses)


def scontrol(arguments: Sequence[str]) -> int:
    """`requeue JOB` asks for a job to be ended and started again; that happens a moment later."""
    what, job = arguments
    assert what == "requeue", arguments
    write(_own_number(job), state="REQUEUED")
    return 0


def scancel(arguments: Sequence[str]) -> int:
    """With `--signal` it reaches the steps' processes alone; else all is ended."""
    known = argparse.ArgumentParser()
    known.add_argument("--signal")
    known.add_argument("job")
    asked = known.parse_args(arguments)
    _send(_own_number(asked.job), asked.signal or "TERM")
    if asked.signal is None:
        os.killpg(read(asked.job)["process"], signal.SIGTERM)
    return 0


def _send(job: str, name: str) -> None:
    """To every process of the job's steps, those that its tasks have started as well."""
    for task in read(job).get("tasks", []):
        for process in _with_children(task):
            with suppress(ProcessLookupError):
                os.kill(process, signal.Signals[f"SIG{name.removeprefix('SIG')}"])


def _with_children(process: int) -> list[int]:
    with suppress(OSError):
        own = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [process, *(one for child in own for one in _with_children(int(child)))]
    return [process]


def squeue(arguments: Sequence[str]) -> int:
    print("JOBID STATE")
    for path in sorted(jobs().glob("*.json")):
        if (about := read(path.stem))["state"] not in ENDED:
            print(path.stem, about["state"])
    return 0


def sacct(arguments: Sequence[str]) -> int:
    """`-o JobID,State,NodeList --parsable2 -j JOB`."""
    assert arguments[:3] == ["-o", "JobID,State,NodeList", "--parsable2"], arguments
    print("JobID|State|NodeList")
    for path in sorted(jobs().glob("*.json")):
        about = read(path.stem)
        shown = f"{about['array_job']}_{about['array_task']}" if "array_job" in about else path.stem
        print(f"{shown}|{about['state']}|127.0.0.1")
    return 0


def _own_number(job: str) -> str:
    array, _, index = job.partition("_")
    return str(int(array) + int(index or 0))


def _node_list(nodes: int) -> str:
    return NODES.format(1, nodes) if nodes > 1 else "127.0.0.1"


def _filled(pattern: str, environment: dict[str, str]) -> str:
    places = {
        "%j": environment["SLURM_JOB_ID"],
        "%x": environment["SLURM_JOB_NAME"],
        "%t": environment["SLURM_PROCID"],
        "%A": environment.get("SLURM_ARRAY_JOB_ID", ""),
        "%a": environment.get("SLURM_ARRAY_TASK_ID", ""),
    }
    for place, value in places.items():
        pattern = pattern.replace(place, value)
    return pattern


if __name__ == "__main__":
    known = (sbatch, slurmd, srun, scontrol, scancel, squeue, sacct)
    sys.exit(next(one for one in known if one.__name__ == sys.argv[1])(sys.argv[2:]))
