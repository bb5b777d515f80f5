"""Command processes that start warm: forked from one process that has loaded the libraries, and has done nothing else.

`python -m clipkit.COMMAND` spends most of a short run on importing torch, Lightning and their like. A forked child is a
process of its own, with its own arguments, folder, environment, streams and exit status; only the imports are shared.
Run as a program, this file is the process that forks; it reads one request a line from its standard input.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "pytorch_lightning", "torchmetrics", "torchvision.transforms.v2", "transformers", "timm",
    "transformers.models.bert.modeling_bert", "sklearn.metrics", "scipy.sparse", "pandas", "pyarrow.parquet",
    "matplotlib.figure", "hydra", "rich.progress", "PIL.JpegImagePlugin", "optuna.storages", "optuna.importance",
    "clipkit.runs.build", "clipkit.runs.training", "clipkit.runs.results", "clipkit.data.streaming_datamodule",
    "clipkit.models.model", "clipkit.models.text", "clipkit.models.image", "clipkit.approaches.contrastive",
)  # fmt: skip
BY_LIBRARIES = (  # set in this process when they are imported, and in a new one again
    "PYTORCH_NVML_BASED_CUDA_CHECK", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR",
    "TOKENIZERS_PARALLELISM", "HYDRA_FULL_ERROR", "LD_LIBRARY_PATH",  # the last by cv2, for its own Qt
)  # fmt: skip
OWN = ("CLIPKIT_CACHE", "COLUMNS", "PYTHONUNBUFFERED", "PYTEST_CURRENT_TEST", "PWD", "OLDPWD")  # read when a run starts


class WarmProcesses:
    """Starts the forking process when it is first needed, and asks it for one child at a time."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None
        self._environment = dict(os.environ)

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether nothing differs that a library may have read when it was imported."""
        keys = {*environment, *self._environment} - {*OWN, *BY_LIBRARIES}
        return all(environment.get(key) == self._environment.get(key) for key in keys)

    def run(
        self, command: str, arguments: list[str], *, cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """One `python -m clipkit.COMMAND`, to its end; `TimeoutExpired` as `subprocess.run` raises it."""
        (done,) = self.run_together(
            command, arguments, cwd=cwd, environment=environment, own_environments=[{}], timeout=timeout
        )
        return done

    def run_together(
        self,
        command: str,
        arguments: list[str],
        *,
        cwd: Path,
        environment: dict[str, str],
        own_environments: list[dict[str, str]],
        timeout: float,
    ) -> list[subprocess.CompletedProcess[str]]:
        """The same command by several processes at once, as torchrun starts them, each with variables of its own."""
        if self._parent is None or self._parent.poll() is not None:
            self._parent = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        with tempfile.TemporaryDirectory() as place:
            request = {
                "module": f"clipkit.{command}",
                "arguments": arguments,
                "cwd": str(cwd),
                "environment": {key: environment[key] for key in OWN if key in environment},
                "own_environments": own_environments,
                "streams": f"{place}/",
                "timeout": timeout,
            }
            self._parent.stdin.write(json.dumps(request) + "\n")
            self._parent.stdin.flush()
            answer: dict[str, Any] = json.loads(self._parent.stdout.readline())
            said = [
                [Path(f"{place}/{number}.{stream}").read_text(errors="replace") for stream in (1, 2)]
                for number in range(len(own_environments))
            ]
        line = [sys.executable, "-m", f"clipkit.{command}", *arguments]
        for status, (out, err) in zip(answer["status"], said, strict=True):
            if status is None:
                raise subprocess.TimeoutExpired(line, timeout, out, err)
        return [
            subprocess.CompletedProcess(line, status, out, err)
            for status, (out, err) in zip(answer["status"], said, strict=True)
        ]


def _serve() -> None:
    import importlib

    for name in LIBRARIES:  # importing starts OpenBLAS's and jemalloc's threads alone, which know how to fork
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for number in range(len(request["own_environments"])):
            child = os.fork()
            if child == 0:
                _become(request, number)
            children.append(child)
        end = time.monotonic() + request["timeout"]
        print(json.dumps({"status": [_wait(child, end - time.monotonic()) for child in children]}), flush=True)


def _become(request: dict[str, Any], which: int) -> None:
    """In the child: do what `python -m` does, and leave with its status."""
    import runpy
    import traceback

    status = 1
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # what is the parent's to remove at its end
    if "wandb.sdk.data_types._private" in sys.modules:  # a folder made at its import, and removed when a run ends
        sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.update(request["environment"] | request["own_environments"][which])
        for number in (1, 2):
            os.dup2(os.open(f"{request['streams']}{which}.{number}", os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["python", *request["arguments"]]
        sys.path[0] = ""  # where `python -m` looks first
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):  # what an interpreter does when it ends
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, seconds: float) -> int | None:
    """The child's exit status, as `subprocess` counts it; None, and the child is killed, if it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    _serve()
