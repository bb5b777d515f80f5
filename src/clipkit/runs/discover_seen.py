"""Pictures of a gallery as a model and fitted detectors see them, batch by batch."""

from collections.abc import Iterator, Sequence
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

__all__ = ["Seen", "batches_seen", "encode", "joined"]

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


def batches_seen(config: DictConfig, known: Known, gallery: Gallery) -> Iterator[Seen]:
    """What detectors and classifier say of the pictures, batch by batch; the last one may hold broken ones alone."""
    watcher = known.watcher
    for features, names, broken in _features(config, watcher.model, gallery):
        signals = watcher.signals(features)
        labels = [watcher.class_names[number] for number in watcher.predicted(signals)]
        sure = torch.from_numpy(signals.logits).softmax(1).amax(1).numpy()
        yield Seen(names, signals.embeds, known.fitted.scores(signals), labels, sure, broken)


def joined(parts: Sequence[Seen], gallery: Gallery, run: Run) -> Seen:
    """All batches as one; broken pictures are listed, and if none can be read that is a `UserError`."""
    broken = [one for part in parts for one in part.broken]
    refuse_without_pictures(broken, len(gallery), run.write_broken(broken))
    return Seen(
        [name for part in parts for name in part.names],
        np.concatenate([part.embeds for part in parts]),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores},
        [label for part in parts for label in part.labels],
        np.concatenate([part.sure for part in parts]),
        broken,
    )


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
