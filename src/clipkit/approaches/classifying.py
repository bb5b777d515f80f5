"""What the approaches share that train a classifier on labelled pictures: a head, and the image tower's last groups.

A subclass is one small file: it says how its head is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.encoding import embed_images
from clipkit.approaches.labels import NEVER_ALIGNED, check_classes, same_sentences
from clipkit.approaches.search import Search
from clipkit.approaches.stored import Prototypes, stored, text_start
from clipkit.approaches.together import Pictures, train_together
from clipkit.approaches.validation import Seen, joined
from clipkit.data.batches import Batch, Served
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.losses.gather import Shares
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import freeze
from clipkit.models.heads.base import Head
from clipkit.models.model import Model
from clipkit.ranks import process_group, ranks

__all__ = ["Classifying"]

NO_LABEL = -1


class Classifying(Approach):
    """A head on the image embedding (or feature), trained by cross-entropy; the text tower stays frozen.

    Args:
        encoder: the model to adapt.
        stages: by name, in order.
        monitor: what chooses the best weights.
        init: "text": the head starts as the zero-shot classifier of the class names in the data's templates (needs an
            encoder whose towers were trained together); "random": from nothing.
        label_smoothing: share of each target that is spread evenly over the classes.
        ema: decay of averaged weights, which are then validated and handed on.
        search: values of lr, weight_decay and of the head's numbers, each a list, and how many seeds: heads of all
            combinations are trained together in place of the stage, and validation pictures choose (`Search`).
    """

    head: Head
    searchable: ClassVar[tuple[str, ...]] = ()  # arguments that are numbers of the head (`Head.numbers`)

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/loss",
        init: Literal["text", "random"] = "text",
        label_smoothing: float = 0.0,
        ema: float | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, stages=stages, monitor=monitor, ema=ema)
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"approach.label_smoothing={label_smoothing}: a share is expected, 0 or more and less than 1"
            )
        if init == "text" and not encoder.aligned:
            raise UserError(f"{NEVER_ALIGNED.format('approach.init=text starts from the class names')}, or init=random")
        self.init, self.label_smoothing = init, label_smoothing
        self.search = None if search is None else Search.read(search, numbers=self.searchable)
        if self.search is not None:
            self.search.check(self.stages, monitor=monitor, averaged=ema is not None)
        self._text: Prototypes | None = None
        self._val: list[Seen] = []

    def make_head(self, class_names: Sequence[str]) -> Head:
        """The head, with random weights."""
        raise NotImplementedError

    def check_numbers(self) -> None:
        """Make a small head of each setting: a number that cannot be is said before anything is read."""
        own = {name: getattr(self, name) for name in self.searchable}
        for setting in ({}, *(() if self.search is None else self.search.settings)):
            self._set(setting)
            self.make_head(("a", "b"))
            self._set(own)

    def prepare(self, features: FrozenFeatures) -> None:
        """Make the head and let it start from the class names; or search for one."""
        if self.search is None:
            self.new_head(features, features.data.seed)
        else:
            self._train_search(self.search, features)

    def new_head(self, features: FrozenFeatures, seed: int) -> Head:
        """Make `head`, with the first weights that this seed draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = self.make_head(features.data.records.class_names)
        self.begin(features)
        return self.head.to(self.device)

    def begin(self, features: FrozenFeatures) -> None:
        """Let the new `head` start from the class names."""
        if self.init == "text":
            self._text = self._text or text_start(features)
            self.head.start_from_text(self._text.embeds.cpu(), logit_scale=self._text.logit_scale)

    def notes(self, data: PairData) -> list[str]:
        """Classes that cannot be told apart by their sentences."""
        check_classes(data)
        notes = same_sentences(data, self.encoder.tokenize) if self.init == "text" else []
        if self.search is not None:
            if not (data.split("val").labels >= 0).any():
                raise UserError(
                    f"approach.search lets validation pictures choose, and {data.records.name} has none with a class: "
                    "set approach.search=null, or take a data set with a validation split"
                )
            notes.append(
                f"{len(self.search)} heads (settings: {len(self.search.settings)}, seeds: {self.search.seeds}) are "
                f"trained together in place of the stage; {self.monitor} chooses"
            )
        return notes

    def enter(self, name: str, features: FrozenFeatures) -> None:
        """Freeze and unfreeze; serve from the store what the image tower's frozen half says."""
        super().enter(name, features)
        freeze(self.encoder, self.stage.train)
        for unused in (self.encoder.text, self.encoder.text_projection, self.encoder.logit_scale):
            unused.requires_grad_(False)  # no loss depends on them: several processes would wait for their gradients
        if self.head.eats == "features":
            self.encoder.image_projection.requires_grad_(False)
        features.data.serve(Served(self.stage.batch_size, self.stored_images(features), texts=False))

    def head_parameters(self) -> list[nn.Parameter]:
        return [*super().head_parameters(), *self.head.parameters()]

    def inputs(self, batch: Batch) -> Tensor:
        """What the head eats of a batch: [B, D] embeddings or [B, F] features."""
        stage, project = self.stage, self.head.eats == "embeds"
        return embed_images(self.encoder, stage.train, batch, chunk_size=stage.chunk_size, project=project)

    def logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """[B, C] of a batch: what the model answers, or, in `training`, what the loss sees."""
        x = self.inputs(batch)
        answer: Tensor = self.head.training_logits(x, batch["label"]) if training else self.head(x)
        return answer

    @property
    def with_margin(self) -> bool:
        """Whether the loss sees other logits than those that the model answers."""
        return type(self.head).training_logits is not Head.training_logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, labels = self.logits(batch, training=True), batch["label"]
        labelled = labels != NO_LABEL
        size = Shares.of(labels[labelled], process_group()).total
        losses = cross_entropy(
            logits.float(), labels, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing, reduction="none"
        )
        loss = losses[labelled].sum() * (ranks() / max(1, size))  # processes are averaged: each gives its part
        if not self.with_margin:  # else no number is that of a guess
            self.against_chance = loss.detach(), float(np.log(logits.shape[1]))
        penalty = self.penalty()
        if penalty is not None:
            self.log_mean("train/penalty", penalty, size)
            loss = loss + penalty
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        self.log_mean("train/loss_epoch", loss, size)
        return loss

    def penalty(self) -> Tensor | None:
        """What is added to the loss of each step."""
        return self.head.penalty()

    def on_validation_epoch_start(self) -> None:
        self._val = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        kept = {"logits": self.logits(batch).float(), "label": batch["label"], "image_id": batch["image_id"]}
        self._val.append({name: value.cpu() for name, value in kept.items()})

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy and weighted F1 over the whole validation set, without margin and dropout."""
        if not self._val:
            return
        whole = joined(self._val, {"image_id": ("logits", "label")})
        self._val = []
        labelled = whole["label"] != NO_LABEL
        logits, labels = whole["logits"][labelled], whole["label"][labelled]
        if len(labels) == 0:
            return
        if not torch.isfinite(logits).all():
            raise UserError(
                f"stage {self.stage_name} has diverged in epoch {self.current_epoch + 1}: logits hold NaN or infinity. "
                "Lower optimizer.lr, or try trainer.precision=32-true and trainer.gradient_clip_val=1"
            )
        predicted = logits.argmax(1)
        self.log("val/loss", cross_entropy(logits, labels))
        self.log("val/top1", (predicted == labels).float().mean(), prog_bar=True)
        self.log("val/f1_weighted", float(f1_score(labels, predicted, average="weighted", zero_division=0)))

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.head, templates)

    def _train_search(self, search: Search, features: FrozenFeatures) -> None:
        """Train all heads of a search, take the first seed's of the best setting, and leave nothing to the stages."""
        data = features.data
        self.lengthen(data.count("train"))
        stage = next(stage for stage in self.stages.values() if stage.epochs > 0)
        heads = []
        for seed, setting in search.heads(data.seed):
            self._set(setting)
            heads.append(self.new_head(features, seed))
        assert stage.views != "fresh"
        train, val = self._pictures(features, "train", stage.views), self._pictures(features, "val", 1)
        outcomes = train_together(
            heads,
            search.recipes(data.seed, stage.optimizer),
            stage=stage,
            train=train,
            val=val,
            monitor=self.monitor,
            label_smoothing=self.label_smoothing,
            on_progress=partial(features.on_progress, f"epochs of {len(heads)} heads") if len(heads) > 1 else None,
            on_epoch=self._tell_of_epoch,
        )
        best, self.tables["search"] = search.decide(outcomes, monitor=self.monitor, seed=data.seed)
        self._set(search.settings[best])
        self.head = heads[best * search.seeds]
        self.validation = dict(outcomes[best * search.seeds].scores)
        self.chosen |= search.settings[best]
        self.stages = {name: replace(stage, epochs=0) for name, stage in self.stages.items()}

    def _tell_of_epoch(self, epoch: int, scores: Mapping[str, Tensor]) -> None:
        if self.on_epoch is not None:
            self.on_epoch(epoch, {name: float(value[0]) for name, value in scores.items()})

    def _set(self, setting: Mapping[str, float]) -> None:
        """Take a setting's numbers of the head as the approach's own."""
        for name in self.searchable:
            if name in setting:
                setattr(self, name, setting[name])

    def _pictures(self, features: FrozenFeatures, split: str, views: int) -> Pictures:
        """What the head eats of a split's labelled pictures."""
        found, records = stored(features, split, views), features.data.split(split)
        x = found.embeds if self.head.eats == "embeds" else found.features
        return Pictures(x, found.labels, records.image_ids[records.labels != NO_LABEL])
