"""Scoring pictures, keeping them, grouping the novel ones, and making a class of a group.

Run: python -m clipkit.discover action=score fitted=outputs/discover/known images=DIR store=FOUND
     python -m clipkit.discover action=cluster store=FOUND fitted=outputs/discover/known
     python -m clipkit.discover action=accept store=FOUND cluster=0 label="a kind" fitted=outputs/discover/known
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig

from clipkit.data.gallery import Gallery, find_pictures
from clipkit.data.images import FolderReader
from clipkit.data.manifest import Manifest
from clipkit.discovery.clusters import Clusters, changes
from clipkit.discovery.fitted import Fitted
from clipkit.discovery.store import NoveltyStore
from clipkit.discovery.store_records import Scored, content_hash
from clipkit.errors import UserError
from clipkit.models.model import Model
from clipkit.runs import machine
from clipkit.runs.asking import as_list
from clipkit.runs.csv_file import csv_file
from clipkit.runs.discover_fit import Known, load_known
from clipkit.runs.discover_pictures_page import show_clusters, show_scores, write_clusters_page, write_scores_page
from clipkit.runs.discover_seen import Seen, batches_seen, encode, joined
from clipkit.runs.discover_setup import clusterer, names_of
from clipkit.runs.load import load
from clipkit.runs.progress import as_typed, console, say
from clipkit.runs.record import Run
from clipkit.runs.unreadable import say_broken

__all__ = ["accept_cluster", "cluster_pictures", "score_pictures"]

Array = NDArray[np.float32]


def score_pictures(config: DictConfig, run: Run) -> None:
    """Write `scores.csv`, a row a picture; with a store, add what it does not have, and cluster again when due.

    Raises:
        UserError: no detectors or pictures; a detector that was not fitted; a store of another model.
    """
    gallery = find_pictures(as_list(config.images))
    known = load_known(config.fitted, config)
    decides = _decides(config, known.fitted)
    threshold = known.fitted.thresholds[decides]
    store = None if config.store is None else _open(config, known, decides)
    parts, added = [], 0
    for part in batches_seen(config, known, gallery):
        parts.append(part)
        if store is not None and part.names:  # what is seen is kept, whatever happens after
            added += store.add(_scored(part, decides, part.scores[decides] > threshold), part.embeds)
    seen = joined(parts, gallery, run)
    novel = seen.scores[decides] > threshold
    others = [name for name in seen.scores if name != decides]
    with csv_file(run.folder / "scores.csv") as rows:
        rows.writerow(["picture", "novel", "score", "threshold", "class", "probability", *others])
        for number in np.argsort(-seen.scores[decides], kind="stable").tolist():
            values = [f"{seen.scores[name][number]:.6g}" for name in (decides, *others)]
            said = [seen.labels[number], f"{seen.sure[number]:.4f}"]
            first = [seen.names[number], "yes" if novel[number] else "no", values[0], f"{threshold:.6g}"]
            rows.writerow([*first, *said, *values[1:]])
    notes = list(known.fitted.notes)
    grown = None
    if store is not None:
        counts = store.counts()
        notes.append(
            f"{added:,} of {len(seen.names):,} pictures were new to the store {as_typed(store.folder)}, which holds "
            f"{counts.novel:,} novel, {counts.known:,} known and {counts.accepted:,} accepted ones"
        )
        if store.due(config.every):
            grown = store
    say(notes)
    held_out = known.fitted.detectors[decides].score(known.fitted.held_out)
    if config.report:
        write_scores_page(
            run, config, gallery, seen.names, seen.scores[decides], novel, seen.labels,
            decides=decides, threshold=threshold, held_out=held_out, notes=notes,
        )  # fmt: skip
    run.finish(pictures=len(seen.names), novel=int(novel.sum()), broken=len(seen.broken))
    say_broken(seen.broken, run.folder / "broken_images.csv")
    show_scores(run, gallery, seen.names, seen.scores[decides], novel, decides=decides, threshold=threshold)
    if grown is not None:
        console.print(f"\n  {config.every} novel pictures or more have come since the last clustering: grouping them")
        _cluster_store(config, run, grown, known.watcher.model, page="clusters.html")


def cluster_pictures(config: DictConfig, run: Run) -> None:
    """Group the novel pictures of a store, or those of `images` (all of them where nothing was fitted)."""
    if config.store is not None:
        known = load_known(config.fitted, config)
        store = _open(config, known, _decides(config, known.fitted))
        _cluster_store(config, run, store, known.watcher.model)
        run.finish()
        return
    gallery = find_pictures(as_list(config.images))
    notes = []
    if config.fitted is None:
        model = _model(config)
        names, embeds, broken = encode(config, run, model, gallery)
        notes.append("nothing was fitted (fitted=…), so all pictures are grouped, known ones too")
    else:
        known = load_known(config.fitted, config)
        model, decides = known.watcher.model, _decides(config, known.fitted)
        seen = joined(list(batches_seen(config, known, gallery)), gallery, run)
        novel = seen.scores[decides] > known.fitted.thresholds[decides]
        names, embeds = [name for name, new in zip(seen.names, novel, strict=True) if new], seen.embeds[novel]
        broken = seen.broken
        notes.append(f"{len(names):,} of {len(seen.names):,} pictures are novel ({decides}), and these are grouped")
    say_broken(broken, run.folder / "broken_images.csv")
    _write_clusters(config, run, model, names, embeds, clusterer(config)(embeds, None), notes=notes)
    run.finish()


def accept_cluster(config: DictConfig, run: Run) -> None:
    """Make the pictures of a cluster a class: in a manifest that training takes, and then in the store.

    Raises:
        UserError: there is no such cluster, its pictures are gone, or the manifest cannot be written.
    """
    label = str(config.label).strip()
    source = Path(config.fitted).expanduser() / "manifest.json" if config.manifest is None else config.manifest
    manifest = Manifest.read(source)
    store = NoveltyStore.existing(config.store)
    chosen = [one for one in store.novel() if one.cluster == config.cluster]
    there = [one for one in chosen if os.path.isfile(one.name)]
    if chosen and not there:
        raise UserError(
            f"none of the {len(chosen)} pictures of cluster {config.cluster} is where it was: {chosen[0].name}"
        )
    path = run.folder / "manifest.json"
    counts = {"train": 0, "val": 0, "left": 0}
    if there:
        embeds = store.embeds([one.row for one in there])
        order = np.argsort(-(embeds @ embeds.mean(0)), kind="stable")  # the most typical first
        extended, counts = manifest.extended(label, [there[number].name for number in order.tolist()])
        extended.write(path)
    clusterings = store.clusterings()
    try:
        accepted = store.accept(int(config.cluster), label, clustering=clusterings[-1].number if clusterings else None)
    except UserError:
        path.unlink(missing_ok=True)  # nothing was accepted
        raise
    console.print(f"  {len(accepted):,} pictures of cluster {config.cluster} are {label!r} now")
    left = f"; {counts['left']} are left over" if counts["left"] else ""
    console.print(
        f"  the class {label!r} has {counts['train']} pictures to train and {counts['val']} to validate in "
        f"{as_typed(path)}{left}",
        soft_wrap=True,
    )
    if len(there) < len(chosen):
        say([f"{len(chosen) - len(there)} pictures are not where they were any more, and are left out"])
    for what, how in (
        ("train", f"python -m clipkit.train approach=gda … data.manifest={as_typed(path)}"),
        ("the next", f"python -m clipkit.discover action=accept … manifest={as_typed(path)}"),
    ):
        console.print(f"  {what:<11} {how}", soft_wrap=True)
    run.finish(accepted=len(accepted), label=label)


def _model(config: DictConfig) -> Model:
    return load(config.model).to(machine.choose_device(config.device))


def _decides(config: DictConfig, fitted: Fitted) -> str:
    name = str(config.detector)
    if name in fitted.thresholds:
        return name
    if len(fitted.thresholds) == 1:
        return next(iter(fitted.thresholds))
    raise UserError(f"detector={name} was not fitted in fitted=…; it has {', '.join(fitted.thresholds)}")


def _open(config: DictConfig, known: Known, decides: str) -> NoveltyStore:
    return NoveltyStore.open(
        config.store,
        model=f"{decides} {known.fitted.fingerprint[:16]}",
        embed_dim=known.watcher.model.encoder.embed_dim,
        threshold=known.fitted.thresholds[decides],
    )


def _scored(seen: Seen, decides: str, novel: NDArray[np.bool_]) -> list[Scored]:
    each = zip(seen.names, seen.scores[decides], novel, seen.labels, strict=True)
    return [
        Scored(os.path.abspath(name), content_hash(os.path.expanduser(name)), float(score), bool(new), label)
        for name, score, new, label in each
    ]


def _cluster_store(
    config: DictConfig, run: Run, store: NoveltyStore, model: Model, *, page: str = "report.html"
) -> None:
    """Group the novel pictures of a store, keep the clustering there, and say what has changed since the last one."""
    rows = store.novel()
    if not rows:
        raise UserError(f"{store.folder} holds no novel picture that is not accepted: there is nothing to group")
    if model.encoder.embed_dim != store.embed_dim:
        raise UserError(
            f"{store.folder} holds embeddings of {store.embed_dim} numbers, and this model gives "
            f"{model.encoder.embed_dim}: give the fitted=… that scored them"
        )
    numbers = [row.row for row in rows]
    embeds = store.embeds(numbers)
    clusters = clusterer(config)(embeds, None)
    history = store.clusterings()
    change = None
    if history:
        before = store.labels_of(history[-1].number)
        change = changes(np.array([before.get(number, -1) for number in numbers]), clusters.labels)
        change.to_csv(run.folder / "changes.csv", index=False)
        _keep_last_dendrogram(store.folder, run.folder)
    names = [row.name for row in rows]
    linkage = {"linkage": str(config.clustering.linkage), "clusters": clusters.number}
    number = store.add_clustering(dict(zip(numbers, clusters.labels.tolist(), strict=True)), linkage)
    notes = [f"clustering {number} of {store.folder}: {len(rows):,} novel pictures"]
    _write_clusters(config, run, model, names, embeds, clusters, notes=notes, change=change, page=page)
    drawn = run.folder / "plots" / "dendrogram.png"
    if drawn.exists():
        shutil.copyfile(drawn, store.folder / "dendrogram.png")


def _keep_last_dendrogram(store: Path, folder: Path) -> None:
    """The tree of the clustering before, which the page shows beside the new one."""
    if (store / "dendrogram.png").exists():
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(store / "dendrogram.png", folder / "plots" / "dendrogram_before.png")


def _write_clusters(
    config: DictConfig,
    run: Run,
    model: Model,
    names: list[str],
    embeds: Array,
    clusters: Clusters,
    *,
    notes: list[str],
    change: pd.DataFrame | None = None,
    page: str = "report.html",
) -> None:
    proposed = names_of(config, model, clusters, embeds) if model.encoder.aligned else []
    with csv_file(run.folder / "clusters.csv") as rows:
        rows.writerow(["picture", "cluster", "name"])
        for number in np.argsort(clusters.labels, kind="stable").tolist():
            k = int(clusters.labels[number])
            rows.writerow([names[number], k, proposed[k][0][0] if proposed else ""])
    gallery = Gallery(tuple(names), (), FolderReader(""))
    said = [*notes, *clusters.notes]
    if len({own[0][0] for own in proposed}) < len(proposed):
        said.append("the vocabulary has fewer words than there are clusters: names repeat")
    write_clusters_page(run, config, gallery, embeds, clusters, proposed, notes=said, change=change, page=page)
    show_clusters(run, clusters, proposed, page=page)
