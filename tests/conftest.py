"""Shared fixtures: an offline environment, small models, and one finished run that many tests look at."""

import os
import socket
import subprocess
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
    OMP_WAIT_POLICY="passive",
)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every command that starts cold would compile all of clipkit again

import pytest
import torch

from warm_processes import WarmProcesses

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
WARM = WarmProcesses()
ROOT = Path(__file__).parents[1]
TINY = ("backbone=tiny", "data=synthetic", "data.num_images=160", "trainer=cpu", "trainer.threads=1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    kept = [item for item in items if item.get_closest_marker("slow") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


class Command:
    """Runs `python -m clipkit.COMMAND …` as a user would: a real process, in a folder of its own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.warm = True  # set to False where the start itself is the question
        self.environment = {**os.environ, "CLIPKIT_CACHE": str(cache), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}

    def __call__(
        self, command: str, *arguments: str, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """To its end; warm (`warm_processes.py`), unless the environment says what libraries read at their import."""
        whole = {**self.environment, **environment}
        if self.warm and hasattr(os, "fork") and WARM.fits(whole):
            return WARM.run(command, list(arguments), cwd=self.folder, environment=whole, timeout=timeout)
        return subprocess.run(
            self.line(command, *arguments),
            cwd=self.folder,
            env=whole,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def together(self, count: int, *arguments: str, timeout: float = 300) -> list[subprocess.CompletedProcess[str]]:
        """`train` by processes that were started together, on the processor, as torchrun does it; all of them, warm."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        world["TORCHELASTIC_RUN_ID"] = "test"
        own = [{key: str(value) for key, value in {**world, "RANK": r, "LOCAL_RANK": r}.items()} for r in range(count)]
        return WARM.run_together(
            "train",
            [*arguments, "trainer=multi_node", "trainer.accelerator=cpu", "trainer.threads=1"],
            cwd=self.folder,
            environment=self.environment,
            own_environments=own,
            timeout=timeout,
        )

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.line(command, *arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def line(command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"clipkit.{command}", *arguments]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One feature cache for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clipkit(tmp_path: Path, cache: Path) -> Command:
    return Command(tmp_path, cache)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a finished run of two tiny towers from scratch on synthetic pictures."""
    folder = tmp_path_factory.mktemp("runs")
    done = Command(folder, cache)("train", *TINY, "approach.stages.towers.epochs=3", "name=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "outputs" / "train" / "tiny"
