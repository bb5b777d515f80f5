"""Models between a start and what training made of it: weights (1 − α) θ₀ + α θ₁ (WiSE-FT, arXiv 2109.01903, eq. 1).

>>> between = Interpolation(clipkit.load("emoji_clip"), clipkit.load("outputs/train/my_run"))
>>> with between.at(0.5) as model:
...     save_model(model, Path("half_way"))
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.base import Head
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.model import Model
from clipkit.models.weights import copy_weights

__all__ = ["Interpolation"]


class Interpolation:
    """The line between two models of one architecture.

    Every floating-point weight is interpolated, the temperature (as its logarithm) and BatchNorm's means and variances
    too; counters are the end's. The classifier of the end goes along:

    - Prototypes of class names go from the start's zero-shot prototypes, of the same names in the same sentences.
    - A head that can start from text (`Head.start_from_text`) goes from that state, made with the start's prototypes:
      there it answers as the start does zero-shot, whatever its hidden layers hold. So a head is interpolated towards
      the zero-shot classifier also where training had begun elsewhere (`init=random`).
    - Heads that read features before the projection, which no text can be compared with, or that know no text, have no
      counterpart in the start: they stay as they are at every α.
    - Without a classifier there is nothing to do: zero-shot prototypes are made by the interpolated text tower.

    Args:
        start: θ₀; its own classifier plays no part.
        end: θ₁, with its classifier and templates.

    Raises:
        UserError: the encoders differ; the message names the first weight that does.
    """

    def __init__(self, start: Model, end: Model) -> None:
        _check_same(start.encoder, end.encoder)
        self.start, self.end = start, end
        self.same_image_tower = _equal(start.encoder.image, end.encoder.image)
        self._parts: list[tuple[nn.Module, Mapping[str, Tensor]]] = [(end.encoder, start.encoder.state_dict())]
        begun = _starting_state(start, end)
        if begun is not None:
            assert end.classifier is not None
            self._parts.append((end.classifier, begun))

    @contextmanager
    def at(self, alpha: float) -> Iterator[Model]:
        """`end` with its weights at α: 0 has the start's and 1 its own, to the bit. Afterwards its own are back.

        It is moved instead of copied because a tower's pieces are called by functions, which copies would share.
        """
        own = [{name: value.clone() for name, value in module.state_dict().items()} for module, _ in self._parts]
        try:
            for module, start in self._parts:
                _mix(module, start, alpha)
            yield self.end
        finally:
            for (module, _), kept in zip(self._parts, own, strict=True):
                state = module.state_dict()
                for name, value in kept.items():
                    copy_weights(state, name, value)


def _mix(module: nn.Module, start: Mapping[str, Tensor], alpha: float) -> None:
    """Move a module, which holds the end's weights, towards the start's."""
    own = module.state_dict()
    for name, end in own.items():
        if not end.is_floating_point() or alpha == 1:
            continue
        begin = start[name].to(end)
        # lerp leaves weights that are equal as they are, which (1 − α) x + α x does not
        copy_weights(own, name, begin if alpha == 0 else torch.lerp(begin, end, alpha))


def _starting_state(start: Model, end: Model) -> dict[str, Tensor] | None:
    """The end's classifier as it would be at the start; None if it has none there."""
    head = end.classifier
    if not isinstance(head, Head | ZeroShotClassifier) or head.eats != "embeds":
        return None
    zero_shot = start.zero_shot(head.class_names, templates=end.templates)
    if isinstance(head, ZeroShotClassifier):
        return zero_shot.state_dict()
    begun = deepcopy(head)
    try:
        with torch.no_grad():
            begun.start_from_text(zero_shot.prototypes, logit_scale=zero_shot.logit_scale.item())
    except NotImplementedError:
        return None
    return begun.state_dict()


def _equal(one: nn.Module, other: nn.Module) -> bool:
    found = other.state_dict()
    return all(torch.equal(value, found[name].to(value.device)) for name, value in one.state_dict().items())


def _check_same(start: DualEncoder, end: DualEncoder) -> None:
    before, after = start.state_dict(), end.state_dict()
    what = "the start and the run are of different architectures, so there are no weights between them"
    for name in [*after, *before]:
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (before, after)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{what}: {name} is {shapes[0]} in the start and {shapes[1]} in the run")
    if start.preprocess != end.preprocess:
        raise UserError(f"{what}: the start prepares pictures by {start.preprocess}, the run by {end.preprocess}")
