"""CLIP-LoRA: low-rank updates in the attention of both towers, trained on labelled pictures (arXiv 2405.18541).

Run: python -m clipkit.train approach=lora data=emoji data.shots=16
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.classifying import Classifying
from clipkit.approaches.encoding import embed_images, embed_texts
from clipkit.approaches.labels import NEVER_ALIGNED
from clipkit.data.batches import Batch, Served
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.losses import scaled_cosines
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.lora import add_lora, lora_notes, merge_lora
from clipkit.models.model import Model
from clipkit.templates import fill_template

__all__ = ["Lora"]

PUBLISHED = 500  # iterations a shot


class Lora(Classifying):
    """Cross-entropy of logit_scale · cos between each picture and the sentences of all classes, both encoded each step.

    Nothing of a tower that is updated from its first layer on can be stored: pictures are augmented afresh. At the end
    the updates are merged, and the sentences become a zero-shot classifier, so that what is saved is an ordinary model.

    Args:
        encoder: the model to adapt; its towers were trained together.
        stages: one, whose `train` says how many last groups of each tower are updated.
        monitor: what chooses the best weights.
        r, alpha, dropout: of the updates (`clipkit.models.lora`).
        iterations_per_shot: optimiser steps for each training picture that a class has (their mean where classes
            differ), which sets the stage's epochs, up to those that it names; null: those that it names.
        sentences: how many of the data's templates, from the first, name a class; null: all.
        label_smoothing: share of each target that is spread evenly over the classes.
        ema: decay of averaged weights, which are then validated and handed on.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/loss",
        r: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        iterations_per_shot: float | None = 20,
        sentences: int | None = 1,
        label_smoothing: float = 0.0,
        ema: float | None = None,
    ) -> None:
        _check(r, alpha, dropout, iterations_per_shot, sentences, stages)
        if not encoder.aligned:
            raise UserError(
                NEVER_ALIGNED.format("approach=lora compares pictures with class names from the first step on")
            )
        super().__init__(encoder, stages=stages, monitor=monitor, label_smoothing=label_smoothing, ema=ema)
        self.updates: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": dropout}
        self.iterations_per_shot, self.sentences = iterations_per_shot, sentences
        self.classifier: ZeroShotClassifier | None = None
        self._tokens: dict[str, Tensor] = {}  # of all sentences, class by class
        self._each = 1  # sentences a class
        self._val_prototypes: Tensor | None = None

    def notes(self, data: PairData) -> list[str]:
        """Where the updates go, and how long they are trained."""
        notes = super().notes(data)
        for name, stage in self.stages.items():
            if stage.epochs == 0:
                continue
            notes += lora_notes(self.encoder, stage.train)
            epochs, shots = self._epochs(data, stage), _mean_shots(data)
            if self.iterations_per_shot is not None:
                early = "" if stage.patience is None else f", fewer if {self.monitor} stops improving"
                notes.append(
                    f"stage {name}: {epochs} epochs, about {self.iterations_per_shot:g} iterations a shot ({shots:.3g} "
                    f"training pictures a class){early}; published are {PUBLISHED} (experiment=clip_lora)"
                )
        return notes

    def prepare(self, features: FrozenFeatures) -> None:
        """Count the epochs; make the sentences that name the classes."""
        data = features.data
        self.stages = {name: replace(stage, epochs=self._epochs(data, stage)) for name, stage in self.stages.items()}
        templates = self._templates(data)
        named = [fill_template(template, name) for name in data.records.class_names for template in templates]
        self._tokens, self._each = self.encoder.tokenize(named), len(templates)

    def enter(self, name: str, features: FrozenFeatures) -> None:
        """Add the updates and freeze the rest; pictures come as pixels."""
        Approach.enter(self, name, features)
        add_lora(self.encoder, self.stage.train, **self.updates)
        features.data.serve(Served(self.stage.batch_size, texts=False))

    with_margin = False  # it has no head that could have one

    def penalty(self) -> None:
        return None

    def head_parameters(self) -> list[nn.Parameter]:
        return Approach.head_parameters(self)

    def logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        images = embed_images(self.encoder, self.stage.train, batch, chunk_size=self.stage.chunk_size)
        prototypes = self._prototypes() if self._val_prototypes is None else self._val_prototypes
        return scaled_cosines(images, prototypes, logit_scale=self.encoder.logit_scale.exp())

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._val_prototypes = self._prototypes()  # the same for all batches

    def on_validation_epoch_end(self) -> None:
        self._val_prototypes = None
        super().on_validation_epoch_end()

    def finish(self, features: FrozenFeatures) -> None:
        """Merge the updates, and keep the sentences that were trained as the classifier."""
        merge_lora(self.encoder)
        data = features.data
        self.classifier = Model(self.encoder).zero_shot(data.records.class_names, templates=self._templates(data))

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.classifier, templates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is frozen is loaded as it was: of the weights a checkpoint holds the updates alone."""
        super().on_save_checkpoint(checkpoint)
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}

    def _prototypes(self) -> Tensor:
        """[C, D], rows of unit length: the mean direction of each class's sentences, with gradient."""
        tokens = {name: value.to(self.device) for name, value in self._tokens.items()}
        embeds = embed_texts(self.encoder, self.stage.train, tokens, chunk_size=self.stage.chunk_size)
        return normalize(embeds.view(-1, self._each, embeds.shape[1]).mean(1), dim=-1)

    def _templates(self, data: PairData) -> tuple[str, ...]:
        return data.templates[: self.sentences]

    def _epochs(self, data: PairData, stage: Stage) -> int:
        """As many as `iterations_per_shot` asks for, up to those that the stage names."""
        if self.iterations_per_shot is None or stage.epochs == 0:
            return stage.epochs
        steps = self.iterations_per_shot * _mean_shots(data)
        return max(1, min(stage.epochs, round(steps / stage.steps(data.count("train")))))


def _mean_shots(data: PairData) -> float:
    """Labelled training pictures of the classes that have any."""
    labels = data.split("train").labels
    labels = labels[labels >= 0]
    return len(labels) / len(np.unique(labels))


def _check(
    r: int,
    alpha: float,
    dropout: float,
    iterations_per_shot: float | None,
    sentences: int | None,
    stages: Mapping[str, Stage],
) -> None:
    """Raise a `UserError` for values that no training could have."""
    if not isinstance(r, int) or r < 1:
        raise UserError(f"approach.r={r}: a rank is expected, a whole number from 1")
    if alpha <= 0:
        raise UserError(f"approach.alpha={alpha}: a number above 0 is expected (updates are scaled by alpha / r)")
    if not 0 <= dropout < 1:
        raise UserError(f"approach.dropout={dropout}: a share is expected, 0 or more and less than 1")
    if iterations_per_shot is not None and iterations_per_shot <= 0:
        raise UserError(
            f"approach.iterations_per_shot={iterations_per_shot}: a number above 0 is expected (null: by epochs)"
        )
    if sentences is not None and (not isinstance(sentences, int) or sentences < 1):
        raise UserError(
            f"approach.sentences={sentences}: a whole number from 1 is expected (null: all of data.templates)"
        )
    active = [name for name, stage in stages.items() if stage.epochs > 0]
    if len(active) > 1:
        raise UserError(f"approach=lora has one stage, and here are {', '.join(active)}: set epochs=0 in the others")
