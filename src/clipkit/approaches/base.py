"""What every approach has: stages, and hooks before and after them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.approaches.averaging import AveragedWeights
from clipkit.approaches.optimization import Optimizer, Scheduler, embedding_weights
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.model import Model

__all__ = ["Approach", "Stage"]

MOST_VALIDATIONS = 100  # of a stage that was lengthened to its least steps


@dataclass(frozen=True)
class Stage:
    """One `Trainer.fit`.

    Args:
        epochs: passes over the training pictures; 0 skips the stage.
        validate_every: epochs between two validations, and two checkpoints; the last epoch is always saved.
        least_steps: at least this many optimiser steps, in more epochs where pictures are few (unless `epochs` is 0).
        train: which parts of the encoder are trained.
        batch_size: pictures a batch, all of which the loss compares.
        chunk_size: pictures (and captions) encoded at a time; the loss still compares the whole batch, with exact
            gradients: memory of a chunk, about a third more time. Null: the whole batch at once.
        accumulate: batches an optimiser step; each is compared within itself alone.
        optimizer, scheduler: how.
        views: how many views of each picture the image tower's frozen half encodes, once, before the first epoch: 1
            is the picture itself alone, the others are augmented. "fresh": pictures are augmented anew every epoch, and
            the whole tower runs. A tower that is trained from its first layer on always takes fresh pictures.
        keep: which weights the stage hands on: those of the "best" epoch by `monitor`, or of the "last".
        patience: epochs without a better `monitor` after which the stage ends early; null: it does not.
    """

    epochs: int
    train: Trained
    batch_size: int
    optimizer: Optimizer
    scheduler: Scheduler
    chunk_size: int | None = None
    accumulate: int = 1
    views: int | Literal["fresh"] = 1
    keep: str = "best"
    least_steps: int = 0
    validate_every: int = 1
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.views != "fresh" and (not isinstance(self.views, int) or self.views < 1):
            raise UserError(f"views={self.views}: a number from 1 is expected, or fresh (augmented anew every epoch)")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: pictures a batch are expected, 1 or more")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise UserError(f"patience={self.patience}: epochs are expected, 1 or more (null: never stop early)")
        if self.chunk_size is not None and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise UserError(f"chunk_size={self.chunk_size}: pictures at a time are expected, 1 or more (null: all)")

    def steps(self, pictures: int) -> int:
        """Optimiser steps of an epoch of so many pictures; the last one may have fewer batches."""
        batches = -(-pictures // self.batch_size)
        return max(1, -(-batches // self.accumulate))


class Approach(pl.LightningModule):
    """A way of training. Subclasses add the loss; `train.py` runs the stages in order.

    Args:
        encoder: the model to train.
        stages: by name, in order; a closed-form method has none.
        monitor: the validation metric that chooses the best weights; larger is better, of a loss smaller.
        ema: decay of the averaged weights that are validated and handed on (`AveragedWeights`); null: none.

    Attributes:
        chosen: values that the training or validation data decided, by name (for `run.json`).
        tables: what is to be kept of how they were decided, by file name.
        validation: what validation said of the weights that are handed on, by name (`val/…`).
        on_epoch: told of each epoch of a head that is trained on stored pictures, and what validation said; what it
            raises ends the training.
        against_chance: the last training batch's loss (without gradient), and what a model that cannot tell anything
            apart would have scored; None where that is not known.
    """

    aligns: ClassVar[bool] = False  # whether what it leaves has towers that were trained together

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
        self.chosen: dict[str, float] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.validation: dict[str, float] = {}
        self.on_epoch: Callable[[int, dict[str, float]], None] | None = None
        self.average = None if ema is None else AveragedWeights(ema)
        self.against_chance: tuple[Tensor, float] | None = None
        self.strict_loading = False  # checkpoints leave out what was never trained
        self._sums: dict[str, tuple[Tensor, int]] = {}

    @property
    def stage(self) -> Stage:
        """The stage that is being trained."""
        return self.stages[self.stage_name]

    def lengthen(self, pictures: int) -> None:
        """Give each stage as many epochs of this many pictures as its `least_steps` asks for.

        Where those are many and short, they are validated and saved about a hundred times in all.
        """
        for name, stage in self.stages.items():
            steps = stage.steps(pictures)
            if stage.epochs > 0 and stage.epochs * steps < stage.least_steps:
                epochs = -(-stage.least_steps // steps)
                self.stages[name] = replace(stage, epochs=epochs, validate_every=max(1, epochs // MOST_VALIDATIONS))

    def enter(self, name: str, features: FrozenFeatures) -> None:
        """Begin a stage: freeze and unfreeze, and take from `features` what the stage needs. Overridden by need."""
        self.stage_name = name

    def stored_images(self, features: FrozenFeatures) -> dict[str, dict[str, NDArray[np.float32]]] | None:
        """What the image tower's frozen half says of training and validation; None where the stage takes pictures."""
        stage = self.stage
        if stage.views == "fresh" or stage.train.image_whole:
            return None
        groups, end = stage.train.image_cut
        found = {"train": features.trunk("train", views=stage.views, groups=groups, end=end)}
        if len(features.data.split("val")):
            found["val"] = features.trunk("val", groups=groups, end=end)
        return found

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

    @property
    def about(self) -> dict[str, Any]:
        """What `run.json` is to say of the approach."""
        return {"chosen": self.chosen} if self.chosen else {}

    @property
    def keeps_image_tower(self) -> bool:
        """Whether no stage trains anything of the image tower: its features before and after are the same."""
        return all(stage.train.image_frozen for stage in self.stages.values() if stage.epochs > 0)

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights of the optimiser's group "heads": the projections, and what a subclass adds."""
        return [*self.encoder.image_projection.parameters(), *self.encoder.text_projection.parameters()]

    def configure_optimizers(self) -> Any:
        encoder = self.encoder
        # a fused optimiser takes the loss scale out itself, at its step: too late to clip
        clips_scaled = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val is not None
        optimizer = self.stage.optimizer.build(
            {
                "heads": self.head_parameters(),
                "image": encoder.image.model.parameters(),
                "text": encoder.text.model.parameters(),
                "logit_scale": [encoder.logit_scale, *([] if encoder.logit_bias is None else [encoder.logit_bias])],
            },
            embedding_weights(self),
            may_fuse=not clips_scaled,
        )
        return [optimizer], self.stage.scheduler.build(optimizer, self.total_steps())

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
        """Name the stage, save averaged weights in place of the others, and leave out what was never trained.

        What no stage so far has trained of the towers is loaded as it was.
        """
        checkpoint["stage"] = self.stage_name
        checkpoint["epoch_sums"] = {name: [total.item(), weight] for name, (total, weight) in self._sums.items()}
        if self.average is not None:
            checkpoint["training_weights"] = self.average.save(checkpoint["state_dict"])
        names = list(self.stages)
        stages = [self.stages[name] for name in names[: names.index(self.stage_name) + 1]]
        begun = [stage.train for stage in stages if stage.epochs > 0]
        cuts = {"image": [trained.image_cut for trained in begun if not trained.image_whole]}
        cuts["text"] = [trained.text_cut for trained in begun if not trained.text_whole]
        untouched = set()
        for kind, tower in (("image", self.encoder.image), ("text", self.encoder.text)):
            if len(cuts[kind]) == len(begun):  # no stage has trained all of it
                frozen = tower.frozen_state(groups=max(n for n, _ in cuts[kind]), end=any(e for _, e in cuts[kind]))
                untouched |= {f"encoder.{kind}.model.{name}" for name in frozen}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in untouched}
