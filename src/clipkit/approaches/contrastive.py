"""Contrastive training of a dual encoder on picture–caption pairs, in stages.

Run: python -m clipkit.train approach=contrastive data=emoji
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.frozen import FrozenFeatures
from clipkit.approaches.optimization import embedding_weights
from clipkit.approaches.positives import positive_groups
from clipkit.data.batches import Batch, Served
from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.losses import contrastive_loss, positive_targets, scaled_cosines, soft_targets, supervised_contrastive_loss
from clipkit.metrics import retrieval_metrics
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import freeze
from clipkit.ranks import ranks

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
    """

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
    ) -> None:
        super().__init__(encoder, stages=stages, monitor=monitor)
        if text_bank is True and targets != "multi_positive":
            raise UserError("approach.text_bank=true needs approach.targets=multi_positive")
        self.targets, self.positives = targets, tuple(positives)
        self.soft_temperature = soft_temperature
        self.text_bank, self.image_contrast, self.together = text_bank, image_contrast, together
        self.register_buffer("positive_group", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("bank_features", torch.empty(0), persistent=False)
        self.register_buffer("bank_group", torch.empty(0, dtype=torch.long), persistent=False)
        self._val: list[dict[str, Tensor]] = []

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
            views = max((stage.views for stage in self.stages.values()), default=1)
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
        """What a stream cannot have, and gets instead."""
        if not isinstance(data, StreamData):
            return []
        said = []
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
        freeze(self.encoder, trained)
        if isinstance(data, StreamData):
            data.serve(Served(self.stage.batch_size))
            return
        text = features.text() if trained.text_frozen else None
        image = None
        if trained.image_frozen:
            image = {"train": features.image("train", views=self.stage.views)}
            if len(data.split("val")):
                image["val"] = features.image("val")
        data.serve(Served(self.stage.batch_size, image, text, self.together))
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

    def configure_optimizers(self) -> Any:
        encoder = self.encoder
        heads = [*encoder.image_projection.parameters(), *encoder.text_projection.parameters()]
        optimizer = self.stage.optimizer.build(
            {
                "heads": heads,
                "image": encoder.image.model.parameters(),
                "text": encoder.text.model.parameters(),
                "logit_scale": [encoder.logit_scale],
            },
            embedding_weights(encoder),
        )
        schedulers = self.stage.scheduler.build(optimizer, self.total_steps())
        return [optimizer], schedulers

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, text = self._embed(batch)
        scale = self.encoder.logit_scale.exp()
        group = self._meaning(batch)
        if len(self.bank_features):
            loss = self._bank_loss(image, text, group, scale, owner=batch["text_owner"])
        else:
            loss = self._batch_loss(image, text, group, scale, owner=batch["text_owner"])
        values = {"train/contrastive": loss.detach()}
        self.against_chance = loss.detach(), self._chance(len(image), len(text))
        if self.image_contrast > 0:
            pull = supervised_contrastive_loss(image, group, logit_scale=scale)
            loss = loss + self.image_contrast * pull
            values["train/image_contrast"] = pull.detach()
        size = len(image)
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=True, batch_size=size, prog_bar=True)
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=size)
        self.log("train/logit_scale", scale.detach(), on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.encoder.clamp_logit_scale()

    def on_validation_epoch_start(self) -> None:
        self._val = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        image, text = self._embed(batch)
        owner_group = batch["group"][batch["text_owner"]]
        self._val.append(
            {
                "image": image.cpu(),
                "text": text.cpu(),
                "image_group": batch["group"].cpu(),
                "text_group": owner_group.cpu(),
            }
        )

    def on_validation_epoch_end(self) -> None:
        """Loss and recall over the whole validation set, all captions, dropout off."""
        if not self._val:
            return
        joined = {name: torch.cat([part[name] for part in self._val]) for name in self._val[0]}
        self._val = []
        image, text = joined["image"], joined["text"]
        groups = {"image_group": joined["image_group"], "text_group": joined["text_group"]}
        if not (torch.isfinite(image).all() and torch.isfinite(text).all()):
            raise UserError(
                f"stage {self.stage_name} has diverged in epoch {self.current_epoch + 1}: embeddings hold NaN or "
                "infinity. Lower optimizer.lr, or try trainer.precision=32-true and trainer.gradient_clip_val=1"
            )
        metrics = retrieval_metrics(image, text, **groups, ks=(1, 5))
        loss = contrastive_loss(
            image,
            text,
            logit_scale=self.encoder.logit_scale.detach().exp().cpu(),
            image_targets=positive_targets(groups["image_group"], groups["text_group"]),
            text_targets=positive_targets(groups["text_group"], groups["image_group"]),
        )
        recall = (metrics["i2t_recall@1"] + metrics["t2i_recall@1"]) / 2
        self.log("val/loss", loss)
        self.log("val/recall", recall, prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in metrics.items() if "recall" in name})

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D] and [M, D] embeddings of a batch, from pixels and tokens or from stored features."""
        encoder, trained = self.encoder, self.stage.train
        if "trunk" in batch:
            features = encoder.tail(batch["trunk"], groups=0)
        else:
            features = trained.image_features(encoder, batch["image"])
        if "text_features" in batch:
            text_features = encoder.text.finish(batch["text_features"])
        else:
            text_features = trained.text_features(encoder, batch["text"])
        return self.encoder.project_image(features), self.encoder.project_text(text_features)

    def _chance(self, images: int, texts: int) -> float:
        """The loss of equal logits, whatever the targets: the mean logarithm of how many there are to choose from."""
        among_texts = len(self.bank_features) or texts * ranks()
        return (math.log(among_texts) + math.log(images * ranks())) / 2

    def _meaning(self, batch: Batch) -> Tensor:
        """[B] equal numbers for pictures that mean the same; in a stream those of the batch with the same caption."""
        if len(self.positive_group):
            return self.positive_group[batch["image_id"]]
        same: Tensor = batch["caption_id"] if "caption" in self.positives else batch["image_id"]
        return same

    def _batch_loss(self, image: Tensor, text: Tensor, group: Tensor, scale: Tensor, *, owner: Tensor) -> Tensor:
        """Pictures [B, D] against the batch's captions [M, D]; `owner` [M] is the row of each caption's picture."""
        to_text: Tensor | None = None  # [B, M]; None, where M = B, is the pair itself
        to_image: Tensor | None = None  # [M, B]
        if self.targets == "soft":
            sharpness = scale.detach() if self.soft_temperature is None else scale.new_tensor(1 / self.soft_temperature)
            to_text, to_image = soft_targets(image, text, logit_scale=sharpness, owner=owner)
        elif self.targets == "multi_positive":
            to_text, to_image = positive_targets(group, group[owner]), positive_targets(group[owner], group)
        elif len(text) != len(image):
            row = torch.arange(len(image), device=owner.device)
            to_text, to_image = positive_targets(row, owner), positive_targets(owner, row)
        return contrastive_loss(image, text, logit_scale=scale, image_targets=to_text, text_targets=to_image)

    def _bank_loss(self, image: Tensor, text: Tensor, group: Tensor, scale: Tensor, *, owner: Tensor) -> Tensor:
        """Image→text against every training caption, text→image within the batch."""
        bank = self.encoder.project_text(self.bank_features)  # [U, D]
        to_bank = scaled_cosines(image, bank, logit_scale=scale).log_softmax(1)  # [B, U]
        to_image = scaled_cosines(text, image, logit_scale=scale).log_softmax(1)  # [M, B]
        image_loss = -(positive_targets(group, self.bank_group) * to_bank).sum(1).mean()
        text_loss = -(positive_targets(group[owner], group) * to_image).sum(1).mean()
        return (image_loss + text_loss) / 2
