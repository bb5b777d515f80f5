"""No training: an aligned dual encoder as it stands, with the classes of the data as its classifier.

Run: python -m clipkit.train approach=zero_shot backbone=emoji_clip data=emoji
"""

from collections.abc import Mapping
from typing import Any

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.labels import same_sentences
from clipkit.data.datamodule import PairData
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.model import Model

__all__ = ["ZeroShot"]


class ZeroShot(Approach):
    """A closed-form approach: `finish` makes the classifier from the class names in the data's templates."""

    def __init__(self, encoder: DualEncoder, *, stages: Mapping[str, Stage]) -> None:
        super().__init__(encoder, stages=stages)
        self.classifier: Any = None

    def notes(self, data: PairData) -> list[str]:
        return same_sentences(data, self.encoder.tokenize)

    def finish(self, features: FrozenFeatures) -> None:
        """One prototype per class: the mean embedding of its sentences."""
        data = features.data
        self.classifier = Model(self.encoder).zero_shot(data.records.class_names, templates=data.templates)

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.classifier, templates)
