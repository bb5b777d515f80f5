"""What every approach has: stages, and hooks before and after them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from clipkit.approaches.averaging import AveragedWeights
from clipkit.approaches.frozen import FrozenFeatures
from clipkit.approaches.optimization import Optimizer, Scheduler
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.model import Model

__all__ = ["Approach", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One `Trainer.fit`.

    Args:
        epochs: passes over the training pictures; 0 skips the stage.
        train: which parts of the encoder are trained.
        batch_size: pictures a batch, all of which the loss compares.
        chunk_size: pictures (and captions) encoded at a time; the loss still compares the whole batch, with exact
            gradients: memory of a chunk, about a third more time. Null: the whole batch at once.
        accumulate: batches an optimiser step; each is compared within itself alone.
        optimizer, scheduler: how.
        views: augmented views of each picture that the cache holds where the image tower is frozen; 1 is the
            picture itself alone.
        keep: which weights the stage hands on: those of the "best" epoch by `monitor`, or of the "last".
    """

    epochs: int
    train: Trained
    batch_size: int
    optimizer: Optimizer
    scheduler: Scheduler
    chunk_size: int | None = None
    accumulate: int = 1
    views: int = 1
    keep: str = "best"

    def __post_init__(self) -> None:
        if self.chunk_size is not None and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise UserError(f"chunk_size={self.chunk_size}: pictures at a time are expected, 1 or more (null: all)")


class Approach(pl.LightningModule):
    """A way of training. Subclasses add the loss; `train.py` runs the stages in order.

    Args:
        encoder: the model to train.
        stages: by name, in order; a closed-form method has none.
        monitor: the validation metric that chooses the best weights; its larger values are better.
        ema: decay of the averaged weights that are validated and handed on (`AveragedWeights`); null: none.

    Attributes:
        against_chance: the last training batch's loss (without gradient), and what a model that cannot tell anything
            apart would have scored; None where that is not known.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/recall",
        ema: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = dict(stages)
        self.monitor = monitor
        self.stage_name = ""
        self.average = None if ema is None else AveragedWeights(ema)
        self.against_chance: tuple[Tensor, float] | None = None
        self.strict_loading = False  # checkpoints leave out what was never trained
        self._sums: dict[str, tuple[Tensor, int]] = {}

    @property
    def stage(self) -> Stage:
        """The stage that is being trained."""
        return self.stages[self.stage_name]

    def enter(self, name: str, features: FrozenFeatures) -> None:
        """Begin a stage: freeze and unfreeze, and take from `features` what the stage needs. Overridden by need."""
        self.stage_name = name

    def notes(self, data: PairData) -> list[str]:
        """What the approach does otherwise on this data, to be said before it begins."""
        return []

    def prepare(self, features: FrozenFeatures) -> None:
        """Once, before the first stage, without gradient: what is computed from the training data."""

    def finish(self, features: FrozenFeatures) -> None:
        """Once, after the last stage, with the best weights: training and validation data only."""

    def model(self, templates: tuple[str, ...]) -> Model:
        """What the run leaves for use: the encoder, and the classifier if the approach made one."""
        return Model(self.encoder, None, templates)

    def total_steps(self) -> int:
        """Optimiser steps of this stage.

        Not `trainer.estimated_stepping_batches`: that starts the training loader before a checkpoint's place in it is
        known, and a resumed epoch would begin at its first batch.
        """
        trainer: Any = self.trainer
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        return int(-(-batches // trainer.accumulate_grad_batches) * self.stage.epochs)

    def log_mean(self, name: str, value: Tensor, size: int) -> None:
        """Add a batch's value to the epoch's mean, weighted by `size`; logged as `name` at the end of the epoch.

        Lightning's own means begin anew when a run is resumed inside an epoch; these are part of the checkpoint.
        """
        total, weight = self._sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
        self._sums[name] = (total.to(value.device) + value.detach().double() * size, weight + size)

    def on_train_epoch_start(self) -> None:
        """The means begin anew: not called where a run is resumed inside an epoch."""
        self._sums = {}

    def on_train_epoch_end(self) -> None:
        self.log_dict({name: (total / weight).float() for name, (total, weight) in self._sums.items()})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Log each group's learning rate."""
        for optimizer in self.trainer.optimizers:
            rates = {f"lr/{g['name']}": g["lr"] for g in optimizer.param_groups if "/" not in g.get("name", "/")}
            self.log_dict(rates, on_step=True, on_epoch=False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step and all that belongs to it, so that a checkpoint after it finds everything done."""
        super().optimizer_step(*args, **kwargs)
        self.encoder.clamp_logit_scale()
        if self.average is not None:
            self.average.update(self.trainer.global_step + 1)

    def on_fit_start(self) -> None:
        """Begin to average, or go on as the checkpoint says."""
        if self.average is not None:
            self.average.begin(self)

    def on_validation_start(self) -> None:
        """Validate the averaged weights."""
        if self.average is not None:
            self.average.swap()

    def on_validation_end(self) -> None:
        """Train on with the others."""
        if self.average is not None:
            self.average.swap()

    def on_fit_end(self) -> None:
        """Hand on the averaged weights."""
        if self.average is not None:
            self.average.finish()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the means of the epoch that was begun; take out the average, where there is one."""
        sums = checkpoint["epoch_sums"].items()
        self._sums = {name: (torch.tensor(total, dtype=torch.float64), weight) for name, (total, weight) in sums}
        if self.average is not None and "training_weights" in checkpoint:
            self.average.load(checkpoint["state_dict"], checkpoint["training_weights"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the stage, save averaged weights in place of the others, and leave out towers that were never trained.

        What no stage so far has trained is loaded as it was.
        """
        checkpoint["stage"] = self.stage_name
        checkpoint["epoch_sums"] = {name: [total.item(), weight] for name, (total, weight) in self._sums.items()}
        if self.average is not None:
            checkpoint["training_weights"] = self.average.save(checkpoint["state_dict"])
        names = list(self.stages)
        begun = [self.stages[name].train for name in names[: names.index(self.stage_name) + 1]]
        untouched = []
        if all(trained.image_frozen for trained in begun):
            untouched.append("encoder.image.model.")
        if all(trained.text_frozen for trained in begun):
            untouched.append("encoder.text.model.")
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(tuple(untouched))}
