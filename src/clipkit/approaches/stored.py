"""What closed-form methods and heads begin with: labelled pictures from the store, and the classes' texts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.base import both
from clipkit.models.model import Model

__all__ = ["CLIP_SCALE", "Prototypes", "Stored", "stored", "text_start"]

CLIP_SCALE = 100.0  # CLIP's own logit_scale, which the few-shot papers' constants are relative to
CHUNK = 4096  # pictures standardised and projected at a time


@dataclass(frozen=True)
class Stored:
    """The labelled pictures of a split, on the encoder's device; view 0 is the picture itself.

    Args:
        embeds: [V, N, D], rows of unit length.
        features: [V, N, F] before the projection, standardised where the tower does that.
        labels: [N], none of them −1.
    """

    embeds: Tensor
    features: Tensor
    labels: Tensor

    @property
    def both(self) -> Tensor:
        """[V, N, D + F], the two beside each other (`both`)."""
        return both(self.embeds, self.features)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Prototypes:
    """The classes as texts.

    Args:
        embeds: [C, D], rows of unit length.
        logit_scale: the factor on the cosines that the encoder was trained with (not its logarithm).
    """

    embeds: Tensor
    logit_scale: float


def stored(features: FrozenFeatures, split: str, views: int = 1) -> Stored:
    """Embeddings, features and labels of a split; pictures without a label are left out.

    Args:
        features: the store, and the encoder and data that belong to it.
        split: "train", "val" or "test"; one without pictures gives empty tensors.
        views: the picture and views − 1 augmented ones.

    Raises:
        UserError: the data has fewer than two classes, or no labelled picture to train on.
    """
    key = ("stored", split, views, features.encoder.frozen_dtype)
    return features.once(key, lambda: _stored(features, split, views))


def _stored(features: FrozenFeatures, split: str, views: int) -> Stored:
    encoder, records = features.encoder, features.data.split(split)
    if len(records.class_names) < 2:
        found = ", ".join(records.class_names) or "none"
        raise UserError(f"{records.name} has fewer than two classes ({found}): a classifier needs two or more")
    device = encoder.logit_scale.device
    rows = np.flatnonzero(records.labels >= 0)
    labels = torch.from_numpy(records.labels[rows]).to(device)
    if len(rows) == 0:
        if split == "train":
            raise UserError(f"{records.name} has no training picture with a class")
        empty = torch.zeros(views, 0, encoder.feature_dim, device=device)
        return Stored(empty[..., :1].expand(-1, -1, encoder.embed_dim), empty, labels)
    raw = features.image(split, views=views)  # [V, N, F], mapped from the disk
    embeds = torch.empty(views, len(rows), encoder.embed_dim, device=device)
    standard = torch.empty(views, len(rows), encoder.feature_dim, device=device)
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for view in range(views):
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                chunk = torch.from_numpy(np.array(raw[view, rows[part]])).to(device)
                standard[view, part] = encoder.tail({"feature": chunk}, groups=0)
                embeds[view, part] = encoder.project_image(standard[view, part])
    encoder.train(was_training)
    return Stored(embeds, standard, labels)


def text_start(features: FrozenFeatures) -> Prototypes:
    """One prototype a class: the direction of the mean embedding of its sentences, `data.templates`."""
    return features.once("text_start", lambda: _text_start(features.encoder, features.data))


def _text_start(encoder: DualEncoder, data: PairData) -> Prototypes:
    was_training = encoder.training
    zero_shot = Model(encoder).zero_shot(data.records.class_names, templates=data.templates)
    encoder.train(was_training)
    return Prototypes(zero_shot.prototypes, float(zero_shot.logit_scale))
