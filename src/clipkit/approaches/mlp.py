"""A two-layer classifier on the image embedding, added to the zero-shot logits.

Run: python -m clipkit.train approach=mlp data=cars data.root=…
"""

from collections.abc import Sequence

from clipkit.approaches.classifying import Classifying
from clipkit.models.heads.mlp import MLPHead

__all__ = ["Mlp"]


class Mlp(Classifying):
    """Image embedding → Linear(D, D/2), ReLU, Linear(D/2, C) → cross-entropy (`MLPHead`)."""

    def make_head(self, class_names: Sequence[str]) -> MLPHead:
        return MLPHead(class_names, self.encoder.embed_dim)
