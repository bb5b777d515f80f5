"""How fast a stage goes, what it waits for and how much memory it takes: every epoch, and over the whole stage.

The numbers are called `perf/…` in `metrics.csv` and in every logger; `run.json` has them under `performance`.
"""

import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from clipkit.ranks import ranks
from clipkit.runs.flops import UsefulFlops, peak_flops

__all__ = ["Throughput"]


class Throughput(pl.Callback):
    """Measures each epoch of a stage; validation is left out of its time, writing checkpoints is not.

    It stands last among the callbacks, so that their work counts as a step's and not as waiting for the next batch.

    Args:
        count_flops: count the operations of the stage's first batch; None does so on a GPU.

    Attributes:
        epochs: for each epoch of the stage, also those before it was resumed, with `seconds` beside:
            `pairs_per_s` (training pictures of all processes together), `steps_per_s` (of the optimiser),
            `waiting_for_data` (share of the time), `peak_memory_mb` (of this process, since its start), and
            `workers_memory_mb` (of its loader's processes, in mid-epoch, shared memory divided among its users);
            on a GPU also `peak_gpu_memory_mb`, `tflops_per_s` (useful ones) and `mfu` (over the device's peak), all of
            this process and its device. The last two are missing where the model is compiled, the last one where the
            peak is not known.
    """

    def __init__(self, *, count_flops: bool | None = None) -> None:
        self.count_flops = count_flops
        self.epochs: list[dict[str, float]] = []
        self._step_began = self._step_ended = 0.0
        self._waited = self._worked = 0.0  # seconds of this epoch: for batches, and for steps
        self._pictures = self._first_step = 0
        self._workers_memory = 0.0
        self._counter: UsefulFlops | None = None  # while the first batch of the stage is counted
        self._flops_per_picture: float | None = None
        self._counted = False
        self._counted_pictures = 1

    @property
    def stage(self) -> dict[str, float]:
        """The same numbers over all epochs, except for `seconds`: means over the time, and the highest memory."""
        found = {}
        for name in dict.fromkeys(name for epoch in self.epochs for name in epoch if name != "seconds"):
            measured = [epoch for epoch in self.epochs if name in epoch]
            seconds = sum(epoch["seconds"] for epoch in measured)
            mean = sum(epoch[name] * epoch["seconds"] for epoch in measured) / seconds
            found[name] = _rounded(max(epoch[name] for epoch in measured) if name.endswith("_mb") else mean)
        return found

    @property
    def by_epoch(self) -> dict[str, list[float | None]]:
        """Each number as a list over the epochs; None where it was not measured."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        return {name: [_rounded(epoch[name]) if name in epoch else None for epoch in self.epochs] for name in names}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch(trainer, pl_module)  # a stage that is continued inside an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch(trainer, pl_module)

    def _end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Now, and not in `on_train_epoch_end`: the checkpoint that is written there holds these numbers."""
        epoch = self._measured(trainer, pl_module)
        self.epochs.append(epoch)
        named = {f"perf/{name}": value for name, value in epoch.items() if name != "seconds"}
        for logger in trainer.loggers:  # with the step that the epoch's other numbers have
            logger.log_metrics({**named, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)

    def _begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._waited = self._worked = 0.0
        self._pictures, self._first_step = 0, trainer.global_step
        if _on_gpu(pl_module):
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._step_ended = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_began = time.monotonic()
        self._waited += self._step_began - self._step_ended
        if not self._counted:
            self._counted = True
            wanted = _on_gpu(pl_module) if self.count_flops is None else self.count_flops
            if wanted and not _compiled(pl_module):  # counting runs it uncompiled, which may not fit into the memory
                self._counter, self._counted_pictures = UsefulFlops(), len(batch["image_id"])
                self._counter.__enter__()  # type: ignore[no-untyped-call]  # torch's has no types

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        if self._counter is not None:
            self._counter.backward = True

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._counter is not None:
            self._flops_per_picture = self._counter.total / self._counted_pictures
            self._stop_counting()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pictures += len(batch["image_id"])
        if batch_idx == trainer.num_training_batches // 2:
            self._workers_memory = _workers_memory()
        if batch_idx + 1 == trainer.num_training_batches and _on_gpu(pl_module):
            torch.cuda.synchronize(pl_module.device)  # the steps are given to the device ahead of time
        self._step_ended = time.monotonic()
        self._worked += self._step_ended - self._step_began
        if batch_idx + 1 == trainer.num_training_batches:
            self._end_epoch(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step_ended += time.monotonic() - self._step_began  # inside an epoch: what follows is no waiting

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dict(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [dict(epoch) for epoch in state_dict["epochs"]]

    def _measured(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
        seconds = max(1e-9, self._waited + self._worked)
        found = {
            "seconds": seconds,
            "pairs_per_s": self._pictures * ranks() / seconds,  # shares of a batch differ by one picture at most
            "steps_per_s": (trainer.global_step - self._first_step) / seconds,
            "waiting_for_data": self._waited / seconds,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "workers_memory_mb": self._workers_memory,
        }
        if _on_gpu(module):
            found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(module.device) / 2**20
        if self._flops_per_picture is not None:
            flops = self._flops_per_picture * self._pictures / seconds
            found["tflops_per_s"] = flops / 1e12
            device = torch.cuda.get_device_name(module.device) if _on_gpu(module) else ""
            peak = peak_flops(device, str(trainer.precision))
            if peak is not None:
                found["mfu"] = flops / peak
        return found

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._counter = None


def _on_gpu(module: pl.LightningModule) -> bool:
    return module.device.type == "cuda"


def _compiled(module: pl.LightningModule) -> bool:
    """Whether any part was given to `torch.compile`: as a wrapper, in place, or its forward alone, maybe wrapped."""
    for part in module.modules():
        forward = vars(part).get("forward")
        functions = (forward, *getattr(forward, "args", ()))  # of a partial function
        if any(hasattr(function, "_torchdynamo_orig_callable") for function in functions):
            return True
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None):
            return True
    return False


def _workers_memory() -> float:
    """Megabytes of the processes that this one has started; 0 where the system does not tell."""
    total = 0
    for process in multiprocessing.active_children():
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended, or this is no Linux
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
