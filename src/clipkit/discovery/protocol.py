"""How well novelty is noticed and new categories are found, on data of which some classes are withheld.

Run: python -m clipkit.discover action=evaluate data=emoji

Detectors learn from training pictures of the known classes, thresholds from their validation pictures, and which
detector decides follows from validation too: some known classes are withheld once more, and play the novel ones. Test
pictures and withheld classes are asked about when all that is settled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.records import Records
from clipkit.data.withholding import withhold
from clipkit.discovery.clusters import Clusters
from clipkit.discovery.fitted import Fitted
from clipkit.discovery.knowing import Make, fit_known
from clipkit.discovery.watching import Watcher
from clipkit.metrics import clustering_metrics, novelty_metrics

__all__ = ["Looking", "Outcome", "Split", "evaluate_split", "of_records"]

FEW = 10  # validation pictures of classes that play novel, below which training pictures join them
REHEARSALS = 5  # draws of known classes that play the novel ones in validation
Features = Callable[[Records], Tensor]  # [N, F] of some pictures
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Looking:
    """What stays the same over all splits.

    Args:
        features: what the image tower says of pictures.
        watcher: makes the watcher of some known classes.
        names: of detectors; None: all.
        options: of detectors.
        false_alarms: share of known validation pictures beyond a threshold.
        default: the detector that decides where there is no rehearsal.
        cluster: groups [N, D] embeddings, into a given number of clusters or, for None, as many as it finds.
    """

    features: Features
    watcher: Make
    names: Sequence[str] | None
    options: Mapping[str, Mapping[str, Any]]
    false_alarms: float
    default: str
    cluster: Callable[[NDArray[np.float32], int | None], Clusters]


@dataclass(frozen=True)
class Split:
    """One draw: `known` with few-shot splits, and the `withheld` classes."""

    known: Records
    withheld: Records


@dataclass(frozen=True)
class Outcome:
    """What one split came to.

    Args:
        metrics: by detector: AUROC and the others, and `validation`, the mean AUROC of the rehearsals.
        chosen: the detector with the best validation.
        scores: by detector, of the test pictures, known ones first.
        novel: [N] which of them are of withheld classes.
        thresholds: by detector.
        flagged: [N] which the chosen detector takes for novel.
        classes: [N] the true class, withheld ones after the known.
        taken_for: [N] the known class of each, or after these the cluster.
        embeds: [N, D].
        clusters: of the flagged pictures.
        discovery: agreement of `taken_for` with `classes`; and of clusters of all truly novel pictures, as many as
            there are classes, under `oracle_…`.
        test: the N test pictures.
        notes: what the detectors had to say.
    """

    metrics: dict[str, dict[str, float]]
    chosen: str
    scores: dict[str, Scores]
    novel: NDArray[np.bool_]
    thresholds: dict[str, float]
    flagged: NDArray[np.bool_]
    classes: NDArray[np.int64]
    taken_for: NDArray[np.int64]
    embeds: NDArray[np.float32]
    clusters: Clusters
    discovery: dict[str, float]
    test: list[tuple[Records, int]]
    notes: tuple[str, ...]


def evaluate_split(split: Split, looking: Looking, *, share: float, seed: int) -> Outcome:
    """Fit on what is known, choose by rehearsal, then ask about test pictures of known and withheld classes.

    Args:
        split: what is known, and what is withheld; both have test pictures.
        looking: how.
        share: of the known classes that is withheld in a rehearsal.
        seed: of the rehearsals.
    """
    fitted, watcher = _fit(split.known, looking)
    validation = rehearse(split.known, looking, share=share, seed=seed)
    usual = looking.default if looking.default in fitted.detectors else next(iter(fitted.detectors))
    chosen = max(validation, key=lambda name: validation[name]) if validation else usual
    notes = list(fitted.notes)
    if not validation:
        notes.append(f"too few known classes have validation pictures to rehearse with: {chosen} decides")
    known, novel = split.known.select("test"), split.withheld.select("test")
    seen = watcher.signals(torch.cat([looking.features(known), looking.features(novel)]))
    is_novel = np.arange(len(seen)) >= len(known)
    scores = fitted.scores(seen)
    flagged = scores[chosen] > fitted.thresholds[chosen]
    clusters = looking.cluster(seen.embeds[flagged], None)
    taken_for = watcher.predicted(seen)
    taken_for[flagged] = len(watcher.class_names) + clusters.labels
    classes = np.concatenate([known.labels, len(watcher.class_names) + novel.labels])
    discovery = clustering_metrics(classes, taken_for, known=~is_novel)
    discovery |= {"clusters": float(clusters.number), "flagged": float(flagged.mean())}
    if is_novel.sum() > 1:
        oracle = looking.cluster(seen.embeds[is_novel], len(np.unique(novel.labels)))
        agreement = clustering_metrics(classes[is_novel], oracle.labels)
        discovery |= {f"oracle_{name}": value for name, value in agreement.items()}
    metrics = {
        name: {**novelty_metrics(values, is_novel), **({"validation": validation[name]} if name in validation else {})}
        for name, values in scores.items()
    }
    test = [*((known, row) for row in range(len(known))), *((novel, row) for row in range(len(novel)))]
    return Outcome(
        metrics, chosen, scores, is_novel, fitted.thresholds, flagged, classes, taken_for, seen.embeds, clusters,
        discovery, test, tuple(notes),
    )  # fmt: skip


def rehearse(known: Records, looking: Looking, *, share: float, seed: int) -> dict[str, float]:
    """The mean AUROC of each detector where known classes play the novel ones; {} if there are too few of them.

    Half of the validation pictures of what stays known is the reference of the rank average. The other half is told
    from the validation pictures of the classes that play novel, or, where these are few, from their training pictures
    too, which the model may have been trained on.
    """
    found: dict[str, list[float]] = {}
    for draw in range(REHEARSALS if len(known.class_names) >= 4 else 0):
        stays, plays_novel = withhold(known, share, seed=1000 + REHEARSALS * seed + draw)
        val, strange = stays.select("val"), plays_novel.select("val")
        if len(strange) < FEW:
            strange = replace(
                plays_novel, table=plays_novel.table.filter(pc.not_equal(plays_novel.table["split"], "test"))
            )
        if len(val) < 4 or not len(strange) or len(np.unique(stays.select("train").labels)) < 2:
            continue
        fitted, watcher = _fit(stays, looking, held_out=slice(0, None, 2))
        asked = watcher.signals(torch.cat([looking.features(val)[1::2], looking.features(strange)]))
        novel = np.arange(len(asked)) >= len(range(1, len(val), 2))
        for name, values in fitted.scores(asked).items():
            found.setdefault(name, []).append(novelty_metrics(values, novel)["auroc"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def of_records(part: Records, whole: Records, features: Tensor) -> Tensor:
    """The rows of `features`, one for each record of `whole`, that belong to the pictures of `part`."""
    order = np.argsort(whole.image_ids, kind="stable")
    rows = order[np.searchsorted(whole.image_ids, part.image_ids, sorter=order)]
    return features[torch.from_numpy(rows)]


def _fit(known: Records, looking: Looking, *, held_out: slice = slice(None)) -> tuple[Fitted, Watcher]:
    train = known.select("train")
    labelled = train.labels >= 0
    return fit_known(
        looking.watcher,
        known.class_names,
        (looking.features(train)[torch.from_numpy(labelled)], train.labels[labelled]),
        looking.features(known.select("val"))[held_out],
        detectors=looking.names,
        options=looking.options,
        false_alarms=looking.false_alarms,
    )
