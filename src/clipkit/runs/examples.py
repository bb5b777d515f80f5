"""A few evaluated pictures with what the model answers, for those who look at a run from outside.

Used by: clipkit.runs.results, for `logger=wandb` and `logger=tensorboard`
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipkit.data.datamodule import PairData
from clipkit.data.records import Records
from clipkit.evaluation.classify import has_classes
from clipkit.models.heads.base import eaten
from clipkit.models.model import Model

__all__ = ["Examples", "examples_of"]

COUNT, SIDE = 32, 112  # pictures, pixels
SENTENCES = 10_000  # of class names, that are encoded once more for this


@dataclass(frozen=True)
class Examples:
    """Small pictures, and a table with a row for each.

    Columns: `image`; where there are classes `label`, `answer` and its `probability`; where there are captions
    `caption`, and `finds`, that of these pictures' captions that is nearest, with its `cosine`.
    """

    pictures: list[Image.Image]
    table: pd.DataFrame


def examples_of(model: Model, data: PairData, split: str) -> Examples | None:
    """Up to 32 pictures, spread evenly over a split (or "all"); None where there are none.

    This process works alone: no other is asked for its share.
    """
    records = data.records if split == "all" else data.split(split)
    if not len(records):
        return None
    rows = np.unique(np.linspace(0, len(records) - 1, min(COUNT, len(records))).round().astype(np.int64))
    pixels = data.pixels(records.image_ids[rows])
    with torch.inference_mode():
        features = model.encoder.image_features(pixels.to(model.device))
        table = {
            "image": [records.image_name(int(row)) for row in rows],
            **_classes(model, data, records, rows, features),
            **_captions(model, records, rows, features),
        }
    return Examples([_small(picture) for picture in pixels], pd.DataFrame(table))


def _classes(
    model: Model, data: PairData, records: Records, rows: NDArray[np.int64], features: Tensor
) -> dict[str, list[Any]]:
    classifier = _classifier(model, data, records)
    if classifier is None:
        return {}
    logits = classifier(eaten(classifier, features, model.encoder.project_image)).float().cpu()
    sure, answers = logits.softmax(1).max(1)
    names, labels = records.class_names, records.labels[rows].tolist()
    return {
        "label": [names[label] if label >= 0 else None for label in labels],
        "answer": [names[answer] for answer in answers.tolist()],
        "probability": sure.tolist(),
    }


def _classifier(model: Model, data: PairData, records: Records) -> nn.Module | None:
    """The one that the evaluation asked; None where there are no classes, or too many sentences to encode again."""
    if not has_classes(records):
        return None
    own = model.classifier
    if own is not None and tuple(own.class_names) == records.class_names:  # type: ignore[arg-type]  # a Classifier's
        return own
    if len(records.class_names) * len(data.templates) > SENTENCES:
        return None
    return model.zero_shot(records.class_names, templates=data.templates)


def _captions(model: Model, records: Records, rows: NDArray[np.int64], features: Tensor) -> dict[str, list[Any]]:
    captions = [next(iter(records.captions(int(row))), None) for row in rows]
    known = [caption for caption in captions if caption is not None]
    if not known:
        return {}
    cosines = (model.encoder.project_image(features) @ model.encode_text(known).T).float().cpu()
    best, which = cosines.max(1)
    return {"caption": captions, "finds": [known[index] for index in which.tolist()], "cosine": best.tolist()}


def _small(pixels: Tensor) -> Image.Image:
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE))
    return picture
