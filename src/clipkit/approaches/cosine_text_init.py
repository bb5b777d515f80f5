"""Cosine prototypes that start at the class names and are held near them, without choosing anything by validation.

Run: python -m clipkit.train approach=cosine_text_init data=cars data.root=…
"""

from collections.abc import Sequence

from clipkit.approaches.classifying import Classifying
from clipkit.approaches.stored import stored
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.heads.cosine import CosinePrototypes

__all__ = ["CosineTextInit"]


class CosineTextInit(Classifying):
    """CE(τ·cos) + mean_k λ_k‖w_k − t_k‖², λ_k the zero-shot probability of class k on its shots (CLAP, 2312.12730)."""

    head: CosinePrototypes

    def make_head(self, class_names: Sequence[str]) -> CosinePrototypes:
        return CosinePrototypes(class_names, self.encoder.embed_dim)

    def begin(self, features: FrozenFeatures) -> None:
        super().begin(features)
        if self.init == "text":  # else nothing holds the prototypes
            shots = stored(features, "train")
            self.head.trust_text(shots.embeds[0], shots.labels)
