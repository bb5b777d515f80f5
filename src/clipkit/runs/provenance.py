"""What a run was made with: the commit, the versions of what matters, the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["provenance"]

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "transformers", "numpy", "scikit-learn", "hydra-core")


def provenance() -> dict[str, Any]:
    """For `run.json`."""
    return {
        "git_commit": _git_commit(),
        "versions": {"clipkit": _version("clipkit-train"), **{name: _version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "hardware": _hardware(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, with a + if it has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if "src/clipkit" not in git("ls-files", "--full-name", "provenance.py"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
