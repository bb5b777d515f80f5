"""Tip-Adapter (arXiv 2207.09519): the labelled pictures are remembered, nothing is trained.

Run: python -m clipkit.train approach=tip_adapter data=emoji data.shots=16
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch.nn.functional import normalize

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.labels import same_sentences
from clipkit.approaches.stored import CLIP_SCALE, stored, text_start
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.tip_adapter import TipAdapter as Head
from clipkit.models.model import Model
from clipkit.solvers.tip_adapter import ALPHAS, BETAS, search_blend

__all__ = ["Auto", "TipAdapter", "choose_blend", "published", "remember"]

Auto = float | Literal["auto"]
PAPER_ALPHA, PAPER_BETA = 1.0, 5.5  # taken without validation pictures


class TipAdapter(Approach):
    """Fills the memory in `finish`, and chooses α and β on the validation pictures.

    Args:
        encoder: the frozen, aligned model.
        stages: none.
        views: the picture and views − 1 augmented ones, whose mean embedding is its key.
        alpha: weight of the memory beside zero-shot logits of 100 times the cosine; where the encoder has another
            factor, α is multiplied alike. "auto" is chosen on the validation pictures, 1 without any.
        beta: how fast closeness to a key falls with distance; "auto" likewise, 5.5 without validation pictures.

    Attributes:
        chosen: α and β.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        views: int = 10,
        alpha: Auto = "auto",
        beta: Auto = "auto",
    ) -> None:
        super().__init__(encoder, stages=stages)
        if not isinstance(views, int) or views < 1:
            raise UserError(f"approach.views={views}: a whole number from 1 is expected (1: the picture alone)")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if value != "auto" and not float(value) >= 0:
                raise UserError(f"approach.{name}={value}: 0 or more is expected, or auto")
        self.views, self.alpha, self.beta = views, alpha, beta
        self.head: Head | None = None

    def notes(self, data: PairData) -> list[str]:
        return same_sentences(data, self.encoder.tokenize)

    def finish(self, features: FrozenFeatures) -> None:
        """Remember the training pictures, then choose how much they count."""
        self.head = remember(features, views=self.views)
        alpha, beta = choose_blend(self.head, features, alpha=self.alpha, beta=self.beta)
        self.chosen = {"alpha": alpha, "beta": beta}

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.head, templates)


def remember(features: FrozenFeatures, *, views: int) -> Head:
    """The classifier with a key for each labelled training picture, and the classes' texts."""
    data, encoder = features.data, features.encoder
    train = stored(features, "train", views if data.augment is not None else 1)  # without a policy all are alike
    head = Head(data.records.class_names, num_keys=len(train), embed_dim=encoder.embed_dim).to(train.embeds.device)
    head.remember(normalize(train.embeds.mean(0), dim=-1), train.labels)
    text = text_start(features)
    head.start_from_text(text.embeds, logit_scale=text.logit_scale)
    return head


def published(alpha: Auto, beta: Auto) -> tuple[float, float]:
    """α and β as given, and the paper's where nothing has chosen yet."""
    return PAPER_ALPHA if alpha == "auto" else alpha, PAPER_BETA if beta == "auto" else beta


@torch.no_grad()
def choose_blend(
    head: Head, features: FrozenFeatures, *, alpha: Auto = "auto", beta: Auto = "auto"
) -> tuple[float, float]:
    """Set the head's α and β, by the validation pictures where they are "auto"; returns them in the paper's units."""
    unit = head.logit_scale.item() / CLIP_SCALE
    val = stored(features, "val")
    if len(val) == 0:
        chosen = published(alpha, beta)
    else:
        chosen = search_blend(
            val.embeds[0],
            val.labels,
            keys=head.keys,
            values=head.values,
            text_logits=head.text_logits(val.embeds[0]),
            unit=unit,
            alphas=ALPHAS if alpha == "auto" else (alpha,),
            betas=BETAS if beta == "auto" else (beta,),
        )
    head.blend(unit * chosen[0], chosen[1])
    return chosen
