"""A training program with a stopwatch at its optimiser: what `benchmarks/train_vs_*.py` start for each run.

Run: python -m benchmarks.steps '{"module": "open_clip_train.main", "arguments": ["--train-data", "…"], "report": 9}'

The program runs as it would from the command line; torch tells of every optimiser step, whoever takes it. After
`warmup` + `steps` of them one JSON line goes to the file descriptor `report`, and whoever reads it ends the process:
what programs do at their end (checkpoints, evaluation) is not measured. Without `report` it runs to its end.
"""

import json
import os
import runpy
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__: list[str] = []


class Stopwatch:
    """The time at which each optimiser step ended, and the processor time spent until then."""

    def __init__(self, *, warmup: int, steps: int, report: int) -> None:
        self.warmup, self.steps, self.report = warmup, steps, report
        self.ends: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.ends) != self.warmup + self.steps:
            return
        measured = self.ends[self.warmup - 1 :]
        found = {
            "steps_per_s": self.steps / (measured[-1] - measured[0]),
            "cpu_s_per_step": (self.cpu[-1] - self.cpu[self.warmup - 1]) / self.steps,  # without loader processes
            "slowest_s": max(b - a for a, b in pairwise(measured)),
            "parameters": sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
            "fused": bool(optimizer.defaults.get("fused")),
            "optimizer": type(optimizer).__name__,
            "threads": torch.get_num_threads(),
        }
        os.write(self.report, json.dumps(found).encode() + b"\n")
        time.sleep(600)  # the reader ends this process


def main() -> None:
    job = json.loads(sys.argv[1])
    if "report" in job:
        watch = Stopwatch(warmup=job["warmup"], steps=job["steps"], report=job["report"])
        register_optimizer_step_post_hook(watch)
    if "open_clip_configs" in job:  # a folder of architectures that open_clip does not list
        import open_clip

        open_clip.add_model_config(job["open_clip_configs"])
    sys.argv = [job["module"], *job["arguments"]]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
