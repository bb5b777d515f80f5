"""Contrastive training of a dual encoder on picture–caption pairs, in stages.

Run: python -m clipkit.train approach=contrastive data=emoji
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.encoding import check_length_groups, embed, encoding_notes
from clipkit.approaches.positives import positive_groups
from clipkit.approaches.validation import Seen, joined, seen
from clipkit.data.batches import Batch, Served
from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.losses import (
    GroupTargets,
    PairTargets,
    SoftTargets,
    Targets,
    contrastive_loss,
    positive_targets,
    scaled_cosines,
    sigmoid_loss,
    supervised_contrastive_loss,
)
from clipkit.losses.gather import Shares
from clipkit.metrics import retrieval_metrics
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import freeze
from clipkit.ranks import process_group

__all__ = ["Contrastive"]

FITTED_ON = 2048  # samples of a stream


class Contrastive(Approach):
    """Image and text embeddings of a pair are pulled together, those of other pairs pushed apart.

    Args:
        encoder: the model to train.
        stages: by name, in order.
        monitor: what chooses the best weights; "val/recall" is the mean of both recall@1 on validation.
        targets: "hard" (the pair itself), "soft" (as alike as the pairs are within each tower), or "multi_positive"
            (everything that `positives` calls the same). Where a batch holds several captions of a picture
            (`data.captions=all`), hard means: a caption's one positive is its picture; a picture's positives are all
            its captions, with equal weight.
        positives: what makes two pictures mean the same: "group" (the data set says so), "caption" (an identical
            caption), "class".
        soft_temperature: of the soft targets; null means the learned one.
        text_bank: compare each picture with all distinct training captions, not only the batch's. Needs multi-positive
            targets and a frozen text tower; "auto" takes it in the stages that have both.
        image_contrast: weight of the supervised contrastive loss among the batch's pictures.
        together: put pictures of one group into the same batch.
        loss: "softmax" (CLIP: which caption is it) or "sigmoid" (SigLIP: is it this caption, asked of each; needs
            `backbone.logit_bias`, has no soft targets and no text bank).
        loss_chunk: side of the squares in which the logits of a large batch are worked out; "auto" chooses, null
            writes all of them out at once. Changes memory and time alone.
        text_length_groups: captions of a batch are encoded in this many parts of like length, each cut to its longest;
            the result is the same. Not for towers that see their padding (SigLIP).
        ema: decay of averaged weights, which are then validated and handed on.
    """

    aligns = True

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/recall",
        targets: Literal["hard", "soft", "multi_positive"] = "hard",
        positives: Sequence[Literal["group", "caption", "class"]] = ("group", "caption"),
        soft_temperature: float | None = None,
        text_bank: bool | Literal["auto"] = "auto",
        image_contrast: float = 0.0,
        together: bool = False,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        loss_chunk: int | Literal["auto"] | None = "auto",
        text_length_groups: int = 1,
        ema: float | None = None,
    ) -> None:
        super().__init__(encoder, stages=stages, monitor=monitor, ema=ema)
        if text_bank is True and targets != "multi_positive":
            raise UserError("approach.text_bank=true needs approach.targets=multi_positive")
        if isinstance(loss_chunk, int) and loss_chunk < 1:
            raise UserError(f"approach.loss_chunk={loss_chunk}: give a number of rows from 1, auto or null")
        if loss == "sigmoid":
            _check_sigmoid(encoder, targets, text_bank)
            text_bank = False
        self.loss, self.loss_chunk = loss, loss_chunk
        check_length_groups(encoder, text_length_groups)
        self.targets, self.positives = targets, tuple(positives)
        self.soft_temperature = soft_temperature
        self.text_bank, self.image_contrast, self.together = text_bank, image_contrast, together
        self.text_length_groups = text_length_groups
        self.register_buffer("positive_group", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("bank_features", torch.empty(0), persistent=False)
        self.register_buffer("bank_group", torch.empty(0, dtype=torch.long), persistent=False)
        self._val: list[Seen] = []

    positive_group: Tensor  # [images of the data set] which pictures mean the same
    bank_features: Tensor  # [U, Ft] of the distinct training captions
    bank_group: Tensor  # [U]

    def prepare(self, features: FrozenFeatures) -> None:
        """Find what means the same, and the mean and spread of the image features if the tower standardises."""
        if isinstance(features.data, StreamData):
            self._prepare_for_stream(features)
            return
        train = features.data.split("train")
        image_group, text_group = positive_groups(train, self.positives)
        lookup = np.full(int(features.data.records.image_ids.max()) + 1, -1)
        lookup[train.image_ids] = image_group
        self.positive_group = torch.from_numpy(lookup)
        self._train_text_group = torch.from_numpy(text_group)
        by_image, by_text = self.encoder.image.standardize, self.encoder.text.standardize
        if by_image is not None and not bool(by_image.fitted):
            views = max((stage.views for stage in self.stages.values() if stage.views != "fresh"), default=1)
            raw = features.image("train", views=views)
            by_image.fit(torch.from_numpy(np.array(raw)).flatten(0, 1))
        if by_text is not None and not bool(by_text.fitted):
            by_text.fit(torch.from_numpy(features.text()[features.data.records.text_rows(train)]))

    def _prepare_for_stream(self, features: FrozenFeatures) -> None:
        """There is no table to look things up in: the batch says what means the same, the first samples the spread."""
        towers = [tower.standardize for tower in (self.encoder.image, self.encoder.text)]
        if any(part is not None and not bool(part.fitted) for part in towers):
            for part, raw in zip(towers, features.first(FITTED_ON), strict=True):
                if part is not None and not bool(part.fitted):
                    part.fit(raw)

    def notes(self, data: PairData) -> list[str]:
        """How batches are encoded where that is not plain; what a stream cannot have, and gets instead."""
        stored = not isinstance(data, StreamData)
        said = encoding_notes(self.encoder, self.stages, stored=stored, length_groups=self.text_length_groups)
        if stored:
            return said
        active = [stage.train for stage in self.stages.values() if stage.epochs > 0]
        if any(trained.image_frozen or trained.text_frozen for trained in active):
            said.append("a stream's features are not stored: frozen towers encode pictures and captions afresh")
        if self.targets == "multi_positive":
            said.append("the text bank is off: a stream has no list of its captions")
        if any(tower.standardize is not None for tower in (self.encoder.image, self.encoder.text)):
            said.append(f"features are standardised by the first {FITTED_ON:,} samples of the stream")
        return said

    def enter(self, name: str, features: FrozenFeatures) -> None:
        """Freeze and unfreeze; serve from the store what this stage leaves frozen."""
        super().enter(name, features)
        data, trained = features.data, self.stage.train
        freeze(self.encoder, trained, logit_bias=self.loss == "sigmoid")
        if self.stage.batch_size == 1 and not (self.text_bank and trained.text_frozen):
            raise UserError(
                f"stage {name}: a batch of one picture has nothing to be compared with; take a larger batch_size"
            )
        if isinstance(data, StreamData):
            data.serve(Served(self.stage.batch_size))
            return
        text = features.text() if trained.text_frozen else None
        data.serve(Served(self.stage.batch_size, self.stored_images(features), text, self.together))
        self.bank_features = torch.empty(0, device=self.device)
        if self.text_bank is True or (
            self.text_bank == "auto" and text is not None and self.targets == "multi_positive"
        ):
            if text is None:
                raise UserError(
                    f"approach.text_bank=true needs a frozen text tower, and stage {name} trains "
                    f"{trained.text_groups} of its groups: set approach.text_bank=false or train.text_groups=0"
                )
            rows = data.records.text_rows(data.split("train"))
            self.bank_features = self.encoder.text.finish(torch.from_numpy(text[rows]).to(self.device))
            self.bank_group = self._train_text_group.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, text = self._embed(batch)
        scale = self.encoder.logit_scale.exp()
        group = self._meaning(batch)
        if len(self.bank_features):
            loss = self._bank_loss(image, text, group, scale, owner=batch["text_owner"])
        else:
            loss = self._batch_loss(image, text, group, scale, owner=batch["text_owner"])
        values = {"train/contrastive": loss.detach()}
        images = Shares.of(image, process_group())
        if self.image_contrast > 0:
            pull = supervised_contrastive_loss(images.gather(image), images.join(group), logit_scale=scale)
            loss = loss + self.image_contrast * pull
            values["train/image_contrast"] = pull.detach()
        size = images.total
        if self.loss == "softmax":
            captions = len(text) / len(image) if len(image) else 1.0  # of a picture, in every process about as many
            self.against_chance = values["train/contrastive"], self._chance(size, size * captions)
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        for name, value in ({"train/loss_epoch": loss} | values).items():
            self.log_mean(name, value, size)
        self.log("train/logit_scale", scale.detach(), on_step=True, on_epoch=False)
        if self.loss == "sigmoid" and self.encoder.logit_bias is not None:
            self.log("train/logit_bias", self.encoder.logit_bias.detach(), on_step=True, on_epoch=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._val = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        image, text = self._embed(batch)
        self._val.append(seen(batch, image, text))

    def on_validation_epoch_end(self) -> None:
        """Loss and recall over the whole validation set, all captions, dropout off."""
        if not self._val:
            return
        whole = joined(self._val)
        self._val = []
        image, text = whole["image"], whole["text"]
        groups = {"image_group": whole["image_group"], "text_group": whole["text_group"]}
        if not (torch.isfinite(image).all() and torch.isfinite(text).all()):
            raise UserError(
                f"stage {self.stage_name} has diverged in epoch {self.current_epoch + 1}: embeddings hold NaN or "
                "infinity. Lower optimizer.lr, or try trainer.precision=32-true and trainer.gradient_clip_val=1"
            )
        metrics = retrieval_metrics(image, text, **groups, ks=(1, 5))
        with torch.no_grad():
            loss = self._loss(image, text, self.encoder.logit_scale.exp().cpu(), GroupTargets(**groups))
        recall = (metrics["i2t_recall@1"] + metrics["t2i_recall@1"]) / 2
        self.log("val/loss", loss)
        self.log("val/recall", recall, prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in metrics.items() if "recall" in name})

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D] and [M, D] embeddings of a batch, from pixels and tokens or from stored features."""
        stage = self.stage
        return embed(
            self.encoder, stage.train, batch, chunk_size=stage.chunk_size, length_groups=self.text_length_groups
        )

    def _chance(self, pictures: int, captions: float) -> float:
        """The loss of equal logits, whatever the targets: the mean logarithm of how many there are to choose from."""
        return (math.log(len(self.bank_features) or captions) + math.log(pictures)) / 2

    def _meaning(self, batch: Batch) -> Tensor:
        """[B] equal numbers for pictures that mean the same; in a stream those of the batch with the same caption."""
        if len(self.positive_group):
            return self.positive_group[batch["image_id"]]
        same: Tensor = batch["caption_id"] if "caption" in self.positives else batch["image_id"]
        return same

    def _batch_loss(self, image: Tensor, text: Tensor, group: Tensor, scale: Tensor, *, owner: Tensor) -> Tensor:
        """Pictures [B, D] against the batch's captions [M, D]; `owner` [M] is the row of each caption's picture."""
        targets: Targets = PairTargets(owner)
        if self.targets == "soft":
            sharpness = scale.detach() if self.soft_temperature is None else scale.new_tensor(1 / self.soft_temperature)
            targets = SoftTargets(sharpness, owner)
        elif self.targets == "multi_positive":
            targets = GroupTargets(group, group[owner])
        return self._loss(image, text, scale, targets, among=process_group())

    def _loss(
        self, image: Tensor, text: Tensor, scale: Tensor, targets: Targets, *, among: ProcessGroup | None = None
    ) -> Tensor:
        how: dict[str, Any] = {"logit_scale": scale, "chunk_size": self.loss_chunk, "group": among}
        if self.loss == "softmax":
            return contrastive_loss(image, text, targets=targets, **how)
        bias = self.encoder.logit_bias
        assert bias is not None, "the constructor checks it"
        assert not isinstance(targets, SoftTargets), "the constructor refuses them"
        return sigmoid_loss(image, text, logit_bias=bias.to(scale.device), targets=targets, **how)

    def _bank_loss(self, image: Tensor, text: Tensor, group: Tensor, scale: Tensor, *, owner: Tensor) -> Tensor:
        """Image→text against every training caption, text→image within the batch."""
        images, texts = (Shares.of(part, process_group()) for part in (image, text))
        group, text_group = images.join(group), texts.join(group[owner])
        image, text = images.gather(image), texts.gather(text)
        bank = self.encoder.project_text(self.bank_features)  # [U, D]
        to_bank = scaled_cosines(image, bank, logit_scale=scale).log_softmax(1)  # [B, U]
        to_image = scaled_cosines(text, image, logit_scale=scale).log_softmax(1)  # [M, B]
        image_loss = -(positive_targets(group, self.bank_group) * to_bank).sum(1).mean()
        text_loss = -(positive_targets(text_group, group) * to_image).sum(1).mean()
        return (image_loss + text_loss) / 2


def _check_sigmoid(encoder: DualEncoder, targets: str, text_bank: bool | str) -> None:
    """Raise a `UserError` for what the sigmoid loss cannot have."""
    if encoder.logit_bias is None:
        raise UserError(
            "approach.loss=sigmoid needs a bias on the logits, and this backbone has none: set backbone.logit_bias=-10 "
            "and backbone.temperature=0.1 (where SigLIP starts)"
        )
    if targets == "soft":
        raise UserError("approach.loss=sigmoid has no soft targets: set approach.targets=hard or multi_positive")
    if text_bank is True:
        raise UserError("approach.loss=sigmoid has no text bank: set approach.text_bank=false or auto")
