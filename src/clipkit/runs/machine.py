"""What this machine does well: precision, threads, memory handling; and a quiet Lightning."""

import ctypes
import logging
import os
import sys
import warnings

import torch
from omegaconf import DictConfig

from clipkit.errors import UserError
from clipkit.ranks import cores_shared_by, jobs_at_once, rank
from clipkit.runs.progress import console

__all__ = ["check_accelerator", "choose_device", "frozen_dtype", "prepare_machine", "set_seed", "training_precision"]

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def set_seed(seed: int) -> None:
    """Seed Python, numpy and torch; processes that load data derive theirs from it."""
    import pytorch_lightning as pl  # here: it takes seconds to load

    pl.seed_everything(seed, workers=True, verbose=False)
    os.environ.pop("PL_GLOBAL_SEED", None)  # by it Lightning would seed all processes alike again, once they have met


def prepare_machine(threads: int | None) -> None:
    """Set threads, keep large blocks of memory for reuse, and silence what is no news to the user.

    Processes that train together on one machine share its cores, and process 0 speaks for all. So do jobs of a
    multirun that run at a time.
    """
    sharing = cores_shared_by() * (1 if "OMP_NUM_THREADS" in os.environ else jobs_at_once())  # joblib sets it
    if threads is None and sharing > 1:
        threads = max(1, torch.get_num_threads() // sharing)
    if threads is not None:
        torch.set_num_threads(threads)
    if rank() > 0:
        console.quiet = True
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not torch.cuda.is_available():
        # Lightning has torch look for a driver's library on the disk: at every optimiser step, 0.15 ms
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    _keep_freed_memory()
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning|lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # plots show a box
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def training_precision(asked: str) -> str:
    """Lightning's precision; "auto" is bf16-mixed on a GPU that does it in hardware, else 32-true.

    On a processor float32 is kept even where it has bfloat16 units: the backward of depthwise convolutions is slower
    in bfloat16 there, and no CLIP-like tower is free of one or large enough to gain.
    """
    if asked != "auto":
        return asked
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "32-true"


def frozen_dtype(asked: str) -> torch.dtype | None:
    """What frozen towers run in; "auto" is bfloat16 where the machine has instructions for it, else float32 (None)."""
    if asked == "fp32":
        return None
    if asked == "bf16":
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else None
    return torch.bfloat16 if _cpu_has_bfloat16() else None


def choose_device(asked: str) -> torch.device:
    """The device of a name: "auto" takes the GPU if there is one, "gpu" is another word for "cuda"."""
    asked = "cuda" if asked == "gpu" else asked
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"device={asked}: choose from auto, cpu, cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but no CUDA device is available: choose device=auto or device=cpu")
    return device


def check_accelerator(config: DictConfig) -> None:
    """Refuse `trainer=gpu` on a machine without one, before anything is loaded."""
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("trainer=gpu, but no CUDA device is available: choose trainer=auto or trainer=cpu")


def _cpu_has_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return any(
                flag in line for line in file if line.startswith("flags") for flag in ("amx_bf16", "avx512_bf16")
            )
    except OSError:
        return False


def _keep_freed_memory() -> None:
    """glibc gives large blocks back to the system and fetches them anew at every step, zeroed; keep them instead."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        except (OSError, AttributeError):
            return  # another C library
