"""An MLP with BatchNorm on the frozen model's logits over the class prompts.

Run: python -m clipkit.train approach=logits_mlp data=cars data.root=…
"""

from collections.abc import Sequence
from typing import Any

from clipkit.approaches.classifying import Classifying
from clipkit.approaches.labels import NEVER_ALIGNED
from clipkit.approaches.stored import text_start
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.logits_mlp import LogitsMLP

__all__ = ["LogitsMlp"]


class LogitsMlp(Classifying):
    """Zero-shot logits [B, C] → MLP → cross-entropy (`LogitsMLP`); also without `init=text` it reads those logits."""

    head: LogitsMLP

    def __init__(self, encoder: DualEncoder, **options: Any) -> None:
        if not encoder.aligned:  # said first: another start is no way out here
            raise UserError(NEVER_ALIGNED.format("logits_mlp reads the logits of the class names"))
        super().__init__(encoder, **options)

    def make_head(self, class_names: Sequence[str]) -> LogitsMLP:
        return LogitsMLP(class_names, self.encoder.embed_dim)

    def begin(self, features: FrozenFeatures) -> None:
        super().begin(features)
        if self.init == "random":
            start = text_start(features)
            self.head.read_text(start.embeds, logit_scale=start.logit_scale)
