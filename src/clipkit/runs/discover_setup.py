"""What the actions of `discover` share: the data as the model sees it, detectors, clusters and their names."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from clipkit.data.datamodule import PairData
from clipkit.data.decoding import refuse_if_broken
from clipkit.discovery.clusters import Clusters, cluster
from clipkit.discovery.detectors import DETECTORS
from clipkit.discovery.naming import propose_names, read_vocabulary
from clipkit.discovery.watching import Watcher
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.model import Model
from clipkit.runs import build
from clipkit.runs.progress import ProgressReporter
from clipkit.runs.record import Run
from clipkit.templates import fill_template

__all__ = [
    "clusterer",
    "detector_options",
    "features_of",
    "find_broken",
    "make_watcher",
    "names_of",
    "templates_of",
    "whole_data",
]

Array = NDArray[np.float32]


def find_broken(data: PairData, run: Run) -> None:
    """Open every picture once; `UserError` if too many are broken."""
    with ProgressReporter().showing() as progress:
        broken, total = data.find_broken(on_progress=progress)
    refuse_if_broken(broken, total, data.max_broken, run.write_broken(broken))


def features_of(config: DictConfig, model: Model, data: PairData) -> Tensor:
    """[N, F] of all records of `data`, before the projection, from the feature store; on the CPU."""
    with ProgressReporter().showing() as progress:
        store = FeatureStore(f"{config.cache_dir}/features")
        raw = FrozenFeatures(model.encoder, data, store, on_progress=progress).image_of(data.records)
    encoder, device = model.encoder, model.device
    with torch.inference_mode():
        parts = [encoder.tail({"feature": part.to(device)}, groups=0).float().cpu() for part in torch.split(raw, 4096)]
    return torch.cat(parts).clone() if parts else raw


def whole_data(config: DictConfig, model: Model) -> PairData:
    """All records of `config.data`, no class withheld and no picture left out."""
    own = config.copy()
    with open_dict(own):
        own.data.shots, own.data.withhold = None, None
    return build.build_data(own, model.encoder)


def make_watcher(
    config: DictConfig, model: Model, names: Sequence[str], features: Tensor, labels: NDArray[np.int64]
) -> Watcher:
    """Who tells the known classes apart, as `classifier` says."""
    templates = templates_of(config)
    if config.classifier == "few_shot":
        return Watcher.few_shot(model, names, features, torch.from_numpy(labels), templates=templates)
    make = Watcher.own if config.classifier == "own" else Watcher.zero_shot
    return make(model, names, templates=templates)


def templates_of(config: DictConfig) -> tuple[str, ...]:
    """The sentences that name a class."""
    return tuple(config.data.templates)


def detector_options(config: DictConfig) -> dict[str, dict[str, Any]]:
    """The options of each detector that has some in the configuration."""
    found = {}
    for name in DETECTORS:
        options = OmegaConf.select(config, name)
        if options is not None:
            plain = OmegaConf.to_container(options, resolve=True)
            assert isinstance(plain, dict)
            found[name] = {str(key): value for key, value in plain.items()}
    return found


def clusterer(config: DictConfig) -> Callable[[Array, int | None], Clusters]:
    """Groups embeddings as `clustering` says; a number that is given goes before."""
    options = config.clustering
    make = partial(
        cluster,
        linkage=options.linkage,
        estimate=options.estimate,
        most=options.most,
        neighbours=options.neighbours,
        seed=config.seed,
    )

    def group(embeds: Array, number: int | None) -> Clusters:
        asked = options.number if number is None else number
        return make(embeds, number=asked, distance=options.distance if asked is None else None)

    return group


def names_of(
    config: DictConfig, model: Model, clusters: Clusters, embeds: Array, *, origin: Array | None = None
) -> list[list[tuple[str, float]]]:
    """Proposed names of each cluster, with similarities, the best first; none without clusters.

    Args:
        config: with `vocabulary`.
        model: whose texts are compared.
        clusters: of the pictures.
        embeds: [N, D] of them.
        origin: [D] where pictures of all kinds lie.
    """
    if not clusters.number:
        return []
    words = read_vocabulary(config.vocabulary)
    template = templates_of(config)[0]
    word_embeds = model.encode_text([fill_template(template, word) for word in words]).float().cpu().numpy()
    return propose_names(clusters.centres(embeds), words, word_embeds, origin=origin)
