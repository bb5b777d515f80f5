"""Checkpoints to resume from: `last`, `previous` and `best`, and stopping in good order.

A checkpoint is written under a temporary name and moved into place. It holds tensors and plain containers only.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from clipkit.approaches.base import Approach
from clipkit.errors import UserError
from clipkit.ranks import broadcast, gather, has_lost_others, highest, rank, ranks
from clipkit.runs.endings import Interrupted
from clipkit.runs.progress import as_typed, console

__all__ = ["CheckpointWriter", "StopSignals", "load_checkpoint", "newest_checkpoint"]


STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SAME_S = 1.0  # a job system sends one warning to a process and to the one that hands it on, or two of them


class StopSignals:
    """Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2 (job systems' warnings): during training they wait for the end of the step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received: int | None = None
        self._heard_at = 0.0
        self._told = False  # by another process
        self.wait_for_step = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals inside; restore the former handlers after."""
        former = self.take_over()
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def take_over(self) -> dict[signal.Signals, Any]:
        """Handle them from now on; returns the handlers before. Lightning's own would end the run with 0."""
        return {number: signal.signal(number, self._handle) for number in STOP}

    def hear(self, number: int, *, told: bool = False) -> None:
        """Note a signal that has reached this process, or, `told`, another that trains with it."""
        self.received, self._heard_at, self._told = number, time.monotonic(), told

    def stop(self, where: str = "") -> None:
        """Raise `Interrupted` with the way to go on."""
        number = self.received or signal.SIGINT
        saved = (self.folder / "checkpoints" / "last.ckpt").is_file()
        how = f"Continue with: python -m clipkit.train resume={as_typed(self.folder)}"
        message = f"stopped{where}. {how}" if saved else f"stopped{where}, before the first checkpoint. {how}"
        raise Interrupted(message, 128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and (self._told or time.monotonic() - self._heard_at < SAME_S):
            self._told = False  # its own has come now, too
            return
        again = self.received is not None
        if not again:
            self.hear(number)  # the first is why it stops
        if again or not self.wait_for_step:
            self.stop()


class CheckpointWriter(pl.Callback):
    """Writes checkpoints at the end of every epoch, every few minutes, and when asked to stop; ends a stage early.

    Args:
        folder: where they go.
        monitor: the metric of `best.ckpt`; larger is better, of a loss smaller.
        minutes: between two checkpoints inside an epoch.
        steps: optimiser steps between two checkpoints; None: by the clock alone.
        signals: asked after every optimiser step whether to stop.
        patience: epochs without a better `monitor` after which the stage ends; None: it does not.
        keep: whose `scores` are remembered: those of the "best" epoch, or of the "last".

    Attributes:
        scores: every validation metric of that epoch, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str,
        minutes: float,
        steps: int | None = None,
        signals: StopSignals,
        patience: int | None = None,
        keep: str = "best",
    ) -> None:
        self.keep = keep
        self.folder, self.monitor, self.minutes, self.steps, self.signals = folder, monitor, minutes, steps, signals
        self._sign = -1 if monitor.endswith("loss") else 1
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.scores: dict[str, float] = {}
        self.patience, self.ended = patience, False
        self._saved_at = time.monotonic()
        self._restore: list[torch.Tensor] | None = None
        self._stopping = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.wait_for_step = True
        trainer.should_stop = self.ended  # a checkpoint may have been written by the epoch that was the last

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.take_over()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _, number = self._agree(False)
        self.signals.wait_for_step = False
        if number:
            self.signals.stop(f" after stage {self._stage(pl_module)}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._stopping:
            self.signals.stop(f" in stage {self._stage(pl_module)}, epoch {trainer.current_epoch + 1}")
        if self._restore is not None:
            torch.set_rng_state(self._restore[0])
            if torch.cuda.is_available() and len(self._restore) > 1:
                torch.cuda.set_rng_state(self._restore[1])
            self._restore = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or batch_idx + 1 == trainer.num_training_batches:
            return  # the end of the epoch saves by itself
        due = time.monotonic() - self._saved_at > 60 * self.minutes
        due = due or (self.steps is not None and trainer.global_step % self.steps == 0)
        wanted, number = self._agree(due)
        if wanted:
            self.save(trainer)
        self._stopping = bool(number)  # once this step's numbers are logged, before the next step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done, every = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
        if done % every != 0 and done != trainer.max_epochs:  # an epoch too short to be validated, or saved
            _, number = self._agree(False)
            if number:
                self.save(trainer)
                self.signals.stop(f" in stage {self._stage(pl_module)}, after epoch {done}")
            return
        self._keep_better(trainer)
        since = 0 if self.best_epoch is None else trainer.current_epoch - self.best_epoch
        self.ended = self.patience is not None and since >= self.patience
        self.save(trainer)
        if self.ended and rank() == 0:
            console.print(f"  stage {self._stage(pl_module)}: no better {self.monitor} in {since} epochs, it ends here")
        trainer.should_stop = self.ended
        _, number = self._agree(False)
        if number:
            self.signals.stop(f" in stage {self._stage(pl_module)}, after epoch {trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Inside an epoch (`trainer.val_check_interval`): keep what is better; the epoch's end looks for itself."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        average = pl_module.average if isinstance(pl_module, Approach) else None
        if average is not None:  # it is in the weights' place, to be validated: a checkpoint has them the other way
            average.swap()
        self._keep_better(trainer)
        if average is not None:
            average.swap()

    def _keep_better(self, trainer: pl.Trainer) -> None:
        """Write `best.ckpt` if the last validation was the best so far."""
        metric = trainer.callback_metrics.get(self.monitor)
        value = broadcast(None if metric is None else float(metric))
        better = value is not None and (self.best is None or self._sign * value > self._sign * self.best)
        if better or self.keep == "last":
            said = trainer.callback_metrics.items()
            self.scores = {name: float(score) for name, score in said if name.startswith("val/")}
        if better:
            self.best, self.best_epoch = value, trainer.current_epoch
            self.save(trainer, "best.ckpt")

    def _agree(self, due: bool) -> tuple[bool, int]:
        """Whether any process wants a checkpoint now, and the signal that has reached one of them (0: none).

        What reaches a process later is looked at the next time, by all.
        """
        asked, number = highest(int(due), self.signals.received or 0)
        if number and self.signals.received is None:
            self.signals.hear(number, told=True)
        return bool(asked or number), number

    def save(self, trainer: pl.Trainer, name: str = "last.ckpt") -> None:
        """Write one checkpoint; the former `last.ckpt` becomes `previous.ckpt`. Every process must call it.

        Raises:
            UserError: the disk is full; what was there before is untouched.
        """
        place, part = self.folder / name, self.folder / f".{name}.part{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part)  # process 0 writes, the others wait for it
            if rank() == 0:
                if name == "last.ckpt" and place.exists():
                    place.replace(self.folder / "previous.ckpt")
                part.replace(place)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            part.unlink(missing_ok=True)
            if has_lost_others(error) or (isinstance(error, RuntimeError) and "write" not in str(error)):
                raise
            raise UserError(f"the checkpoint {place} could not be written: {error}") from error
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """With every process's random state: all of them must ask."""
        own = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "scores": self.scores,
            "ended": self.ended,
            "ranks": ranks(),
            "rng": gather(own),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.ended, self.scores = state_dict.get("ended", False), state_dict.get("scores", {})
        self._restore = state_dict["rng"][rank()]

    @property
    def state_key(self) -> str:
        return "CheckpointWriter"

    def _stage(self, module: pl.LightningModule) -> str:
        return module.stage_name if isinstance(module, Approach) else ""


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a run folder (`last`, else `previous`), or None if there is none."""
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / "checkpoints" / name
        if path.is_file():
            try:
                return path, load_checkpoint(path)
            except UserError as error:
                print(f"warning: {error}; trying the one before")
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["stage"], content["state_dict"]
    except Exception as error:  # torn files raise a dozen kinds: zip, pickle, EOF, key errors
        raise UserError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    return content
