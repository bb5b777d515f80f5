"""Logistic regression on what the frozen image tower says (arXiv 2103.00020, appendix A.3).

Run: python -m clipkit.train approach=linear_probe data=emoji data.shots=16
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.labels import same_sentences
from clipkit.approaches.stored import stored, text_start
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.base import Eats
from clipkit.models.heads.linear import LinearHead
from clipkit.models.heads.logistic import LinearHeads
from clipkit.models.model import Model
from clipkit.solvers.strength import choose_C

__all__ = ["LinearProbe", "fit_probe"]


class LinearProbe(Approach):
    """Fits a linear classifier in `finish`, and trains nothing else.

    Args:
        encoder: the frozen model.
        stages: none.
        eats: "features" of the image tower, "embeds" after the projection, or "both" beside each other.
        init: "random" is plain logistic regression; "text" penalises the distance from the zero-shot logits (needs
            `eats: embeds`).
        C: inverse of the strength of regularisation; "auto" chooses it on the validation pictures, 1 without any.
        standardize: divide each dimension by its spread on the training pictures first, and take the mean off.
        balanced: classes with fewer pictures count more for each.
        max_iter: steps of L-BFGS.

    Attributes:
        chosen: the values that validation decided.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        eats: Eats = "features",
        init: Literal["random", "text"] = "random",
        C: float | Literal["auto"] = "auto",
        standardize: bool = True,
        balanced: bool = False,
        max_iter: int = 1000,
    ) -> None:
        super().__init__(encoder, stages=stages)
        if C != "auto" and not C > 0:
            raise UserError(f"approach.C={C}: a number above 0 is expected (auto: chosen on the validation pictures)")
        if init == "text" and eats != "embeds":
            raise UserError("approach.init=text compares pictures with texts, which needs approach.eats=embeds")
        if eats != "features" and not encoder.aligned:
            raise UserError(
                f"approach.eats={eats}: this backbone's towers were never trained together, its projections are "
                "random: use approach.eats=features, backbone=emoji_clip, or backbone=checkpoint backbone.path=MODEL"
            )
        self.eats, self.init, self.C = eats, init, C
        self.standardize, self.balanced, self.max_iter = standardize, balanced, max_iter
        self.head: LinearHead | None = None

    def notes(self, data: PairData) -> list[str]:
        return same_sentences(data, self.encoder.tokenize) if self.init == "text" else []

    def finish(self, features: FrozenFeatures) -> None:
        """Fit on the training pictures."""
        self.head, chosen = fit_probe(
            features,
            eats=self.eats,
            init=self.init,
            C=self.C,
            standardize=self.standardize,
            balanced=self.balanced,
            max_iter=self.max_iter,
        )
        self.chosen = {"C": chosen}

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.head, templates)


def fit_probe(
    features: FrozenFeatures,
    *,
    eats: Eats = "features",
    init: Literal["random", "text"] = "random",
    C: float | Literal["auto"] = "auto",
    standardize: bool = True,
    balanced: bool = False,
    max_iter: int = 1000,
) -> tuple[LinearHead, float]:
    """A linear classifier of the labelled training pictures, and the C that it was fitted with; see `LinearProbe`."""
    train, val = stored(features, "train"), stored(features, "val")
    zero_shot: Tensor | None = None  # [C, D]
    if init == "text":
        text = text_start(features)
        zero_shot = text.logit_scale * text.embeds
    x_val: Tensor = getattr(val, eats)[0]  # [M, F], the pictures as they are
    heads = LinearHeads(
        getattr(train, eats)[0],
        train.labels,
        class_names=features.data.records.class_names,
        eats=eats,
        standardize=standardize,
        balanced=balanced,
        max_iter=max_iter,
        zero_shot=zero_shot,
    )
    strength = choose_C(lambda C: heads.fit(C)(x_val).detach(), val.labels) if C == "auto" else float(C)
    return heads.fit(strength), strength
