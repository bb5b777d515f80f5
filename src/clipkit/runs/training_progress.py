"""What a person sees of a stage: one bar with epoch, loss and validation score; and a word if it waits for pictures."""

import time
from typing import Any

import pytorch_lightning as pl
from rich.progress import Progress, TaskID

from clipkit.runs.progress import LINE_EVERY_S, bar, console
from clipkit.runs.throughput import Throughput

__all__ = ["TrainingProgress"]

NOTE_EVERY_S = 0.5
MUCH_WAITING = 0.4  # of an epoch


class TrainingProgress(pl.Callback):
    """One bar for a stage, with its epoch, loss and validation score.

    Args:
        stage: its name.
        monitor: the validation score to show.
        throughput: the stage's measurements.
    """

    def __init__(self, stage: str, monitor: str, throughput: Throughput) -> None:
        self.stage, self.monitor, self.throughput = stage, monitor, throughput
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = time.monotonic()
        self._said_waiting = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if console.is_terminal:
            self._progress = bar()
            self._progress.start()
            total = (trainer.max_epochs or 1) * trainer.num_training_batches
            self._task = self._progress.add_task(f"stage {self.stage}", total=total, note="")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say once if most of an epoch's time is spent waiting for batches."""
        if not self.throughput.epochs:
            return
        epoch = self.throughput.epochs[-1]
        share, waited = epoch["waiting_for_data"], epoch["waiting_for_data"] * epoch["seconds"]
        if share > MUCH_WAITING and waited > 5 and not self._said_waiting:
            self._said_waiting = True
            console.print(
                f"  stage {self.stage}: {share:.0%} of the time is spent waiting for pictures. More data.workers, or "
                "pictures packed once by `python -m clipkit.pack data=…`, make it faster",
                soft_wrap=True,
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.current_epoch * trainer.num_training_batches + batch_idx + 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)
            if time.monotonic() - self._said > NOTE_EVERY_S:  # to read the loss is to wait for the device
                self._progress.update(self._task, note=self._note(trainer))
                self._said = time.monotonic()
        elif time.monotonic() - self._said > LINE_EVERY_S:
            console.print(f"  stage {self.stage}: {self._note(trainer)}")
            self._said = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not console.is_terminal:
            console.print(f"  stage {self.stage}: done, {self._note(trainer)}")
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _note(self, trainer: pl.Trainer) -> str:
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
        note = f"epoch {epoch}/{trainer.max_epochs}"
        for label, name in (("loss", "train/loss_step"), (self.monitor, self.monitor)):
            if name in trainer.callback_metrics:
                note += f"  {label} {float(trainer.callback_metrics[name]):.3f}"
        return note
