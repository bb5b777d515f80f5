"""What a person sees of a stage: one bar with epoch, loss and validation score; and how fast it goes."""

import time
from typing import Any

import pytorch_lightning as pl
from rich.progress import Progress, TaskID

from clipkit.runs.progress import LINE_EVERY_S, bar, console

__all__ = ["TrainingProgress"]

MUCH_WAITING = 0.4  # of an epoch


class TrainingProgress(pl.Callback):
    """One bar for a stage, with its epoch, loss and validation score; measures the stage's throughput."""

    def __init__(self, stage: str, monitor: str) -> None:
        self.stage, self.monitor = stage, monitor
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = self._began = time.monotonic()
        self._pictures = 0
        self._paused = 0.0
        self._pause_began = 0.0
        self._waited = self._worked = 0.0  # seconds of this epoch: for batches, and for steps
        self._step_began = self._step_ended = 0.0
        self.waiting: list[float] = []  # share of each epoch that was spent waiting for batches

    @property
    def pairs_per_second(self) -> float:
        """Training pictures a second, validation left out."""
        return self._pictures / max(1e-9, time.monotonic() - self._began - self._paused)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        if console.is_terminal:
            self._progress = bar()
            self._progress.start()
            total = (trainer.max_epochs or 1) * trainer.num_training_batches
            self._task = self._progress.add_task(f"stage {self.stage}", total=total, note="")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._waited = self._worked = 0.0
        self._step_ended = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_began = time.monotonic()
        self._waited += self._step_began - self._step_ended

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how long batches were waited for; say it once if that is most of the time."""
        share = self._waited / max(1e-9, self._waited + self._worked)
        if share > MUCH_WAITING and self._waited > 5 and not any(old > MUCH_WAITING for old in self.waiting):
            console.print(
                f"  stage {self.stage}: {share:.0%} of the time is spent waiting for pictures. More data.workers, or "
                "pictures packed once by `python -m clipkit.pack data=…`, make it faster",
                soft_wrap=True,
            )
        self.waiting.append(share)
        for logger in trainer.loggers:
            logger.log_metrics(
                {"perf/waiting_for_data": share, "epoch": trainer.current_epoch}, step=trainer.global_step
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step_ended = time.monotonic()
        self._worked += self._step_ended - self._step_began
        self._pictures += len(batch["image_id"])
        done = trainer.current_epoch * trainer.num_training_batches + batch_idx + 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=self._note(trainer))
        elif time.monotonic() - self._said > LINE_EVERY_S:
            console.print(f"  stage {self.stage}: {self._note(trainer)}")
            self._said = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused += time.monotonic() - self._pause_began

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
