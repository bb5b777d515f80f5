"""What a model answers when its pictures are changed: a sample of them, and logits of changed squares."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.data.randomness import uniform
from clipkit.errors import UserError
from clipkit.evaluation.base import Part
from clipkit.models.heads.base import eaten
from clipkit.ranks import in_turns

__all__ = ["BATCH", "altered_logits", "check_max_pictures", "labelled_sample", "square_logits"]

BATCH = 64


def check_max_pictures(name: str, value: int | None) -> int | None:
    """The value itself.

    Raises:
        UserError: there would be no picture.
    """
    if value is not None and value < 1:
        raise UserError(f"{name}.max_pictures={value}: at least 1 picture is needed (null: all)")
    return value


def labelled_sample(part: Part, count: int | None) -> Part:
    """The pictures that have a label, or `count` of them (None: all).

    Which ones is a function of (seed, image id): not of their order, and not of how the model does on them.
    """
    records = part.records
    draws = uniform(part.data.seed, 0, records.image_ids, 1, purpose="changed pictures")[:, 0]
    rows = np.flatnonzero(records.labels >= 0)
    if count is not None and len(rows) > count:
        rows = np.sort(rows[np.argsort(draws[rows], kind="stable")[:count]])
    if len(rows) == len(records):
        return part
    others = np.delete(records.image_ids, rows)
    sample = Part(part.model, part.data, records.without(others.tolist()), part.on_progress, stored=part.stored)
    if "image_features" in vars(part):  # they have been computed
        sample.image_features = part.image_features[torch.from_numpy(rows)]
    return sample.beside(part)


def altered_logits(
    part: Part, classifier: nn.Module, alter: Callable[[Tensor, NDArray[np.int64]], Tensor], *, what: str
) -> Tensor:
    """[N, C] of the part's pictures, changed; float32, on the CPU.

    Args:
        part: whose pictures.
        classifier: gives the answer.
        alter: uint8 squares [B, 3, S, S] and their rows in the part [B] -> changed squares.
        what: to call it by, where progress is shown.
    """
    ids = part.records.image_ids

    def logits(start: int) -> Tensor:
        rows = np.arange(start, min(start + BATCH, len(ids)))
        found = square_logits(part, classifier, alter(part.data.pixels(ids[rows]), rows))
        part.on_progress(what, int(rows[-1]) + 1, len(ids))
        return found

    return torch.cat(in_turns(range(0, len(ids), BATCH), logits))


@torch.inference_mode()
def square_logits(part: Part, classifier: nn.Module, squares: Tensor) -> Tensor:
    """uint8 squares [B, 3, S, S] -> [B, C], float32, on the CPU."""
    encoder = part.model.encoder
    features = encoder.image_features(squares.to(part.model.device))
    logits: Tensor = classifier(eaten(classifier, features, encoder.project_image)).float().cpu()
    return logits
