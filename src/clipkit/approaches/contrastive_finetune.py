"""Few-shot fine-tuning of a mostly frozen CLIP on generated captions, and a logistic-regression probe on its pictures.

Run: python -m clipkit.train approach=contrastive_finetune data=cars data.root=…
     python -m clipkit.train approach=aamp_contrastive data=cars data.root=…       the same, with an angular margin
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from clipkit.approaches.base import Stage
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.labels import NEVER_ALIGNED, check_classes, same_sentences
from clipkit.data.batches import Batch
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.losses.angular import angular_contrastive_loss, check_margin
from clipkit.losses.targets import GroupTargets, PairTargets
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.base import Head
from clipkit.models.model import Model
from clipkit.ranks import process_group

__all__ = ["ContrastiveFinetune"]


class ContrastiveFinetune(Contrastive):
    """Pictures and sentences of their classes are pulled together; then a probe learns the classes from the pictures.

    Validation looks at classes: a caption of the same class is a right answer.

    Args:
        encoder, stages, monitor, targets, soft_temperature, loss_chunk, text_length_groups, ema: see `Contrastive`.
        positives: what makes two pictures mean the same; by their class, the batch's captions of one class are no
            negatives of each other.
        margin: in radians, 0 … π/2: right pairs have to win by this angle (`angular_contrastive_loss`, AAMP).
        easy_margin: a margin only where a right pair is nearer than 90°.
        scale: the factor on the cosines; null: the model's learned temperature.
        probe: fits a classifier on the pictures after training (`fit_probe` with its options bound).
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        probe: Callable[[FrozenFeatures], tuple[Head, float]],
        monitor: str = "val/loss",
        targets: Literal["hard", "multi_positive"] = "multi_positive",
        positives: Sequence[Literal["group", "caption", "class"]] = ("class",),
        loss_chunk: int | Literal["auto"] | None = "auto",
        text_length_groups: int = 1,
        ema: float | None = None,
        margin: float = 0.0,
        easy_margin: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__(
            encoder,
            stages=stages,
            monitor=monitor,
            targets=targets,
            positives=positives,
            text_bank=False,
            loss_chunk=loss_chunk,
            text_length_groups=text_length_groups,
            ema=ema,
        )
        check_margin(margin)
        if scale is not None and not scale >= 1:
            raise UserError(f"approach.scale={scale}: a factor from 1 is expected (null: the model's own temperature)")
        if not encoder.aligned:
            raise UserError(NEVER_ALIGNED.format("fine-tuning starts from towers that know each other"))
        self.margin, self.easy_margin, self.scale, self.probe = margin, easy_margin, scale, probe
        self.classifier: Head | None = None

    def notes(self, data: PairData) -> list[str]:
        check_classes(data)
        return [*super().notes(data), *same_sentences(data, self.encoder.tokenize)]

    def prepare(self, features: FrozenFeatures) -> None:
        """As `Contrastive`; a given scale replaces the model's own, for training and for use."""
        super().prepare(features)
        if self.scale is not None:
            with torch.no_grad():
                self.encoder.logit_scale.fill_(math.log(self.scale))

    def enter(self, name: str, features: FrozenFeatures) -> None:
        super().enter(name, features)
        if self.scale is not None:
            self.encoder.logit_scale.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.margin > 0:  # with a margin no number is that of a guess
            self.against_chance = None
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step({**batch, "group": batch["label"]}, batch_idx)

    def _batch_loss(self, image: Tensor, text: Tensor, group: Tensor, scale: Tensor, *, owner: Tensor) -> Tensor:
        if self.margin == 0:
            return super()._batch_loss(image, text, group, scale, owner=owner)
        return angular_contrastive_loss(
            image,
            text,
            logit_scale=scale,
            margin=self.margin,
            easy_margin=self.easy_margin,
            targets=GroupTargets(group, group[owner]) if self.targets == "multi_positive" else PairTargets(owner),
            group=process_group(),
        )

    def finish(self, features: FrozenFeatures) -> None:
        """Fit the probe on the pictures as the tuned towers see them."""
        self.classifier, strength = self.probe(features)
        self.chosen = {"C": strength}

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.classifier, templates)
