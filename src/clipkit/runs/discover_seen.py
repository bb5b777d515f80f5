"""Pictures of a gallery as a model and fitted detectors see them, batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from clipkit.data.decoding import Broken, available_cores
from clipkit.data.gallery import Gallery, pixel_batches
from clipkit.models.model import Model
from clipkit.runs.discover_fit import Known
from clipkit.runs.progress import ProgressReporter
from clipkit.runs.record import Run
from clipkit.runs.unreadable import refuse_without_pictures

__all__ = ["Seen", "encode", "look"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """Pictures as they were scored.

    Args:
        names: N that can be read.
        embeds: [N, D].
        scores: [N] of each detector.
        labels: [N] the known class that each was taken for.
        sure: [N] how sure of it the classifier was.
        broken: the others, with reasons.
    """

    names: list[str]
    embeds: Array
    scores: dict[str, NDArray[np.float64]]
    labels: list[str]
    sure: NDArray[np.float32]
    broken: list[Broken]


def look(config: DictConfig, run: Run, known: Known, gallery: Gallery) -> Seen:
    """What detectors and classifier say of every picture; `UserError` if none can be read."""
    watcher = known.watcher
    names: list[str] = []
    broken: list[Broken] = []
    labels: list[str] = []
    embeds, sure, scores = [], [], dict[str, list[NDArray[np.float64]]]()
    for features, fine, unreadable in _features(config, watcher.model, gallery):
        names, broken = [*names, *fine], [*broken, *unreadable]
        if not fine:
            continue
        signals = watcher.signals(features)
        embeds.append(signals.embeds)
        probabilities = torch.from_numpy(signals.logits).softmax(1)
        sure.append(probabilities.amax(1).numpy())
        labels += [watcher.class_names[number] for number in watcher.predicted(signals)]
        for name, values in known.fitted.scores(signals).items():
            scores.setdefault(name, []).append(values)
    refuse_without_pictures(broken, len(gallery), run.write_broken(broken))
    joined = {name: np.concatenate(values) for name, values in scores.items()}
    return Seen(names, np.concatenate(embeds), joined, labels, np.concatenate(sure), broken)


def encode(config: DictConfig, run: Run, model: Model, gallery: Gallery) -> tuple[list[str], Array, list[Broken]]:
    """Names, [N, D] embeddings, and what cannot be read; `UserError` if nothing can."""
    names, embeds, broken = [], [], []
    for features, fine, unreadable in _features(config, model, gallery):
        names += fine
        broken += unreadable
        with torch.inference_mode():
            embeds.append(model.encoder.project_image(features.to(model.device)).float().cpu().numpy())
    refuse_without_pictures(broken, len(gallery), run.write_broken(broken))
    return names, np.concatenate(embeds), broken


def _features(
    config: DictConfig, model: Model, gallery: Gallery
) -> Iterator[tuple[torch.Tensor, list[str], list[Broken]]]:
    """[B, F] before the projection, names and broken pictures of one batch after the other."""
    done = 0
    with ProgressReporter().showing() as progress:
        batches = pixel_batches(
            gallery, model.encoder.preprocess, batch_size=config.batch_size, threads=available_cores()
        )
        for batch in batches:
            features = torch.empty(0, model.encoder.feature_dim)
            if batch.names:
                with torch.inference_mode():
                    features = model.encoder.image_features(batch.pixels.to(model.device)).float().cpu()
            done += len(batch.names) + len(batch.broken)
            progress("looking at pictures", done, len(gallery))
            yield features, batch.names, batch.broken
