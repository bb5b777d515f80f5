"""LP++ (arXiv 2404.02285): a linear classifier from pictures and class texts, without a rate to tune.

Run: python -m clipkit.train approach=lp_plus_plus data=emoji data.shots=16
"""

from collections.abc import Mapping

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.labels import same_sentences
from clipkit.approaches.stored import CLIP_SCALE, stored, text_start
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.linear import LinearHead
from clipkit.models.model import Model
from clipkit.solvers.lp_plus_plus import fit_lp_plus_plus

__all__ = ["LPPlusPlus"]


class LPPlusPlus(Approach):
    """Fits in `finish`; of all iterations the one with the least validation loss is kept, without validation the last.

    Args:
        encoder: the frozen, aligned model.
        stages: none.
        iterations: of full-batch descent.
    """

    def __init__(self, encoder: DualEncoder, *, stages: Mapping[str, Stage], iterations: int = 300) -> None:
        super().__init__(encoder, stages=stages)
        if not isinstance(iterations, int) or iterations < 0:
            raise UserError(f"approach.iterations={iterations}: a whole number is expected (0: the start alone)")
        self.iterations = iterations
        self.head: LinearHead | None = None

    def notes(self, data: PairData) -> list[str]:
        return same_sentences(data, self.encoder.tokenize)

    def finish(self, features: FrozenFeatures) -> None:
        """Fit on the training pictures, from the class texts."""
        train, val = stored(features, "train"), stored(features, "val")
        text = text_start(features)
        blend, _ = fit_lp_plus_plus(
            train.embeds[0],
            train.labels,
            text.embeds,
            unit=text.logit_scale / CLIP_SCALE,
            iterations=self.iterations,
            validation=(val.embeds[0], val.labels),
        )
        names = features.data.records.class_names
        self.head = LinearHead(names, in_features=features.encoder.embed_dim).to(train.embeds.device)
        self.head.fill(blend.weights)

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.head, templates)
