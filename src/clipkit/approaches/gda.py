"""Gaussian discriminant analysis (arXiv 2402.04087), with the class names as what is expected of the class means.

Run: python -m clipkit.train approach=gda data=emoji data.shots=16
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.labels import NEVER_ALIGNED, same_sentences
from clipkit.approaches.stored import CLIP_SCALE, stored, text_start
from clipkit.data.datamodule import PairData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.linear import LinearHead
from clipkit.models.model import Model
from clipkit.solvers.gda import fit_gda, fit_gda_with_text, search_alpha
from clipkit.solvers.temperature import fit_scale

__all__ = ["GDA"]

PAPER_ALPHA = 1.0  # taken without validation pictures
Text = Literal["prior", "logits", "none"]


class GDA(Approach):
    """Fits in `finish`, in closed form; nothing is trained.

    Args:
        encoder: the frozen, aligned model.
        stages: none.
        eats: "both" embeddings and the tower's features beside each other, or "embeds" alone, as published.
        text: what the class names are for. "prior": a class mean is expected where its name says, and each picture
            moves it from there (`text_prior`); "logits": zero-shot logits are added, as published; "none": nothing.
        text_shots: for "prior": how many pictures a class name counts for.
        alpha: for "logits": weight of the discriminant beside zero-shot logits of 100 times the cosine; "auto" is
            chosen on the validation pictures, 1 without any.
        views: the picture and views − 1 augmented ones, each a sample.

    Attributes:
        chosen: what validation pictures decided: α, or the factor that makes probabilities as sure as they are right.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        eats: Literal["both", "embeds"] = "both",
        text: Text = "prior",
        text_shots: float = 4.0,
        alpha: float | Literal["auto"] = "auto",
        views: int = 10,
    ) -> None:
        super().__init__(encoder, stages=stages)
        if not encoder.aligned:
            raise UserError(NEVER_ALIGNED.format("gda compares pictures with class names"))
        if text not in get_args(Text):
            raise UserError(f"approach.text={text}: {', '.join(get_args(Text))} are what there is")
        if not isinstance(views, int) or views < 1:
            raise UserError(f"approach.views={views}: a whole number from 1 is expected (1: the picture alone)")
        if not text_shots >= 0:
            raise UserError(f"approach.text_shots={text_shots}: 0 or more pictures are expected")
        if alpha != "auto" and not float(alpha) >= 0:
            raise UserError(f"approach.alpha={alpha}: 0 or more is expected, or auto")
        self.eats, self.text, self.text_shots, self.alpha, self.views = eats, text, text_shots, alpha, views
        self.head: LinearHead | None = None

    def notes(self, data: PairData) -> list[str]:
        return same_sentences(data, self.encoder.tokenize)

    def finish(self, features: FrozenFeatures) -> None:
        """Fit on the training pictures; the validation pictures decide α, or how sure the answers are."""
        data = features.data
        views = self.views if data.augment is not None else 1  # without a policy all are alike
        train, val = stored(features, "train", views), stored(features, "val")
        names, text = data.records.class_names, text_start(features)
        rows: Tensor = getattr(train, self.eats)  # [V, N, F]
        if self.text == "prior":
            weights, bias = fit_gda_with_text(rows, train.labels, text.embeds, text_shots=self.text_shots)
        else:
            weights, bias = fit_gda(rows.flatten(0, 1), train.labels.repeat(views), num_classes=len(names))
        taught = torch.isin(val.labels, train.labels)  # of other classes it can only be wrong
        x_val, y_val = getattr(val, self.eats)[0][taught], val.labels[taught]
        answers = x_val @ weights.T + bias
        if self.text == "logits":
            zero_shot = pad(text.logit_scale * text.embeds, (0, weights.shape[1] - text.embeds.shape[1]))
            unit = text.logit_scale / CLIP_SCALE
            alpha = PAPER_ALPHA if self.alpha == "auto" else float(self.alpha)
            if self.alpha == "auto" and len(y_val) > 0:
                alpha = search_alpha(x_val @ zero_shot.T, answers, y_val, unit=unit)
            weights, bias = zero_shot + unit * alpha * weights, unit * alpha * bias
            self.chosen = {"alpha": alpha}
        else:
            scale = fit_scale(answers, y_val)
            weights, bias = scale * weights, scale * bias
            self.chosen = {"scale": scale}
        self.head = LinearHead(names, in_features=weights.shape[1], eats=self.eats).to(weights.device)
        self.head.fill(weights, bias)

    def model(self, templates: tuple[str, ...]) -> Model:
        return Model(self.encoder, self.head, templates)
