"""The command line that runs one job again, in a process of its own.

Used by: clipkit.runs.launch, clipkit.runs.grid_jobs
"""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from clipkit.runs.choices import folders_of_ones_own
from clipkit.runs.command_line import quoted

__all__ = ["job_line"]

SWEEP = ("hydra.run.dir", "hydra.sweep", "hydra.mode", "hydra/sweeper", "hydra/launcher", "hydra.launcher")


def job_line(folder: Path) -> list[str]:
    """The running job's own choices, in its folder: of a multirun those of this job.

    Not `sys.argv`: a launcher such as submitit runs a job under another command line.
    """
    said: Any = OmegaConf.to_container(HydraConfig.get().overrides)
    hydra = [text for text in said["hydra"] if not text.lstrip("+~").startswith(SWEEP)]
    own = [part for path in folders_of_ones_own() for part in ("--config-dir", path)]
    program = [sys.executable, "-m", f"clipkit.{HydraConfig.get().job.config_name}"]
    return [*program, *own, *said["task"], *hydra, f"hydra.run.dir={quoted(str(folder.absolute()))}"]
