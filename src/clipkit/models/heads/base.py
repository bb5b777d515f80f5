"""What every trained classifier has: class names, what it eats, and the plain values that rebuild it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["Eats", "Head", "both", "eaten"]

Eats = Literal["embeds", "features", "both"]
FEATURE_LENGTH = 0.5  # beside an embedding of length 1


def both(embeds: Tensor, features: Tensor) -> Tensor:
    """[..., D] embeddings and [..., F] features -> [..., D + F]: each embedding, and the feature's direction beside it.

    What the projection keeps was learned from captions, and what it leaves out still tells pictures apart. The feature
    is half as long as the embedding, so that distances are the embedding's first of all.
    """
    return torch.cat([embeds, FEATURE_LENGTH * normalize(features, dim=-1)], -1)


def eaten(classifier: nn.Module, features: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """What a classifier is given of [B, F] features, by its `eats`; `project` makes them [B, D] embeddings."""
    if classifier.eats == "features":
        return features
    embeds = project(features)
    return embeds if classifier.eats == "embeds" else both(embeds, features)


class Head(nn.Module):
    """From embeddings or features to class logits. Subclasses set `arguments` and write `forward`.

    Args:
        class_names: C names.

    Attributes:
        eats: "embeds" (rows of unit length, in the space of pictures and texts), "features" (of the image tower,
            before the projection), or "both" (`both`).
        arguments: plain values that, with the class names, make this head again before its weights are loaded.
        numbers: names of attributes that may be tensors without dimensions, too: heads that are trained together can
            differ in them.
    """

    eats: Eats = "embeds"
    numbers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.arguments: dict[str, Any] = {}

    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        """Begin as the zero-shot classifier: the same ranking of classes for every picture.

        Args:
            prototypes: [C, D] embeddings of the classes' sentences, rows of unit length.
            logit_scale: the factor on the cosines that the encoder was trained with (not its logarithm).
        """
        raise NotImplementedError(f"{type(self).__name__} does not start from text")

    def training_logits(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B, D] and [B] labels -> [B, C]: what the loss sees, where that is not what the model answers (margins)."""
        logits: Tensor = self(x)
        return logits

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the loss of each step; None: nothing is."""
        return None

    def spec(self) -> dict[str, Any]:
        """What rebuilds this head before its weights are loaded, as plain containers."""
        kind = type(self)
        target = f"{kind.__module__}.{kind.__qualname__}"
        return {"_target_": target, "class_names": list(self.class_names), **self.arguments}
