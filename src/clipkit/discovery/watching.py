"""A model that knows some classes, looking at pictures: what it says of them is what novelty is read from.

watcher = Watcher.few_shot(model, names, features, labels)
signals = watcher.signals(more_features)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.discovery.signals import Signals
from clipkit.errors import UserError
from clipkit.models.heads.base import both, eaten
from clipkit.models.heads.linear import LinearHead
from clipkit.models.model import Model
from clipkit.solvers.gda import fit_gda_with_text

__all__ = ["Watcher"]

TEXT_SHOTS = 4.0  # as approach=gda has it
CHUNK = 4096  # pictures at a time


class Watcher:
    """A model, the classes it knows by text, and the classifier that tells them apart.

    Args:
        model: whose towers were trained together.
        prototypes: [C, D] of the known classes' sentences, rows of unit length.
        classifier: of these classes (a Classifier: `class_names`, `eats`).

    Raises:
        UserError: the model's towers were never trained together.
    """

    def __init__(self, model: Model, prototypes: Tensor, classifier: nn.Module) -> None:
        if not model.encoder.aligned:
            raise UserError(
                "the towers of this model have not been trained together, so class names say nothing about pictures: "
                "give an own contrastive run, emoji_clip, hf:NAME or open_clip:ARCH/TAG"
            )
        self.model, self.prototypes, self.classifier = model, prototypes, classifier

    @classmethod
    def zero_shot(cls, model: Model, names: Sequence[str], *, templates: Sequence[str]) -> "Watcher":
        """Class names in sentences are the classifier."""
        made = model.zero_shot(names, templates=templates)
        return cls(model, made.prototypes, made.eval())

    @classmethod
    def own(cls, model: Model, names: Sequence[str], *, templates: Sequence[str]) -> "Watcher":
        """The model's own classifier; where it knows more classes than these, their logits alone.

        Raises:
            UserError: it has none, or one that does not know all of these classes.
        """
        own = model.classifier
        known = () if own is None else tuple(own.class_names)  # type: ignore[arg-type]  # a Classifier's names
        missing = [name for name in names if name not in known]
        if own is None or missing:
            found = "no classifier" if own is None else f"one that does not know {', '.join(missing[:5])}"
            raise UserError(
                f"classifier=own needs a model with a classifier of the {len(names)} known classes, and this one has "
                f"{found}: take classifier=few_shot or zero_shot"
            )
        prototypes = model.zero_shot(names, templates=templates).prototypes
        same = known == tuple(names)
        return cls(model, prototypes, own if same else _Some(own, [known.index(name) for name in names]).eval())

    @classmethod
    def few_shot(
        cls, model: Model, names: Sequence[str], features: Tensor, labels: Tensor, *, templates: Sequence[str]
    ) -> "Watcher":
        """A Gaussian discriminant fitted to labelled pictures and the class names, as `approach=gda` fits it.

        Its logits are natural logarithms of probabilities, up to a constant of the picture, times the factor that makes
        their spread that of the zero-shot logits: energies and maxima of both can then be compared.

        Args:
            model: whose embeddings are used.
            names: C classes.
            features: [N, F] of the training pictures, before the projection.
            labels: [N].
            templates: sentences that name a class.
        """
        zero_shot = model.zero_shot(names, templates=templates).eval()
        with torch.inference_mode():
            embeds = model.encoder.project_image(features.to(model.device))
            rows = both(embeds, features.to(model.device))
            weights, bias = fit_gda_with_text(
                rows[None], labels.to(model.device), zero_shot.prototypes, text_shots=TEXT_SHOTS
            )
            spreads = [logits.std(1).mean() for logits in (zero_shot(embeds), rows @ weights.T + bias)]
            factor = float(spreads[0] / spreads[1]) if spreads[1] > 0 else 1.0
        head = LinearHead(names, in_features=rows.shape[1], eats="both").to(model.device)
        head.fill(factor * weights, factor * bias)
        return cls(model, zero_shot.prototypes, head.eval())

    @property
    def class_names(self) -> tuple[str, ...]:
        """C known classes."""
        return tuple(self.classifier.class_names)  # type: ignore[arg-type]  # a Classifier's names

    @torch.inference_mode()
    def signals(self, features: Tensor) -> Signals:
        """What the model says of pictures with these [N, F] features of its image tower, before the projection.

        Raises:
            UserError: the model gives NaN or infinity.
        """
        parts: list[tuple[Tensor, ...]] = []
        for chunk in torch.split(features, CHUNK):
            seen = chunk.to(self.model.device)
            embeds = self.model.encoder.project_image(seen)
            logits = self.classifier(eaten(self.classifier, seen, self.model.encoder.project_image))
            parts.append((embeds, seen, embeds @ self.prototypes.T, logits))
        if not parts:
            return self._nothing(features)
        joined = [torch.cat(column).float().cpu().numpy() for column in zip(*parts, strict=True)]
        if not all(np.isfinite(column).all() for column in joined):
            raise UserError("the model gives NaN or infinity for pictures: its weights or its precision are broken")
        return Signals(*joined)

    def predicted(self, signals: Signals) -> NDArray[np.int64]:
        """[N] the known class that each picture is taken for."""
        return np.asarray(signals.logits.argmax(1), np.int64)

    def _nothing(self, features: Tensor) -> Signals:
        widths = (self.model.encoder.embed_dim, features.shape[1], len(self.prototypes), len(self.class_names))
        return Signals(*(np.zeros((0, width), np.float32) for width in widths))


class _Some(nn.Module):
    """A classifier that answers for some of its classes."""

    def __init__(self, whole: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        names: Any = whole.class_names
        self.whole, self.columns, self.eats = whole, list(columns), whole.eats
        self.class_names = tuple(names[column] for column in columns)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.whole(x)
        return logits[:, self.columns]
