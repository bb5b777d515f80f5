"""Detectors of the classes of a data set, as a folder that pictures can be scored with.

Run: python -m clipkit.discover action=fit data=emoji data.shots=16 name=known
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table

from clipkit.data.manifest import Choice, write_manifest
from clipkit.discovery.fitted import Fitted
from clipkit.discovery.watching import Watcher
from clipkit.errors import UserError
from clipkit.models.folder import load_model, save_model, saved_towers
from clipkit.models.model import Model
from clipkit.runs import build, machine
from clipkit.runs.discover_setup import detector_options, features_of, find_broken, make_watcher, templates_of
from clipkit.runs.load import load
from clipkit.runs.progress import as_typed, console, say
from clipkit.runs.record import Run, write_json

__all__ = ["Known", "fit_detectors", "load_known"]

ABOUT = "known.json"


@dataclass(frozen=True)
class Known:
    """What `action=fit` left.

    Args:
        folder: where it is.
        watcher: the model, its class texts, and its classifier.
        fitted: the detectors with their thresholds.
    """

    folder: Path
    watcher: Watcher
    fitted: Fitted


def fit_detectors(config: DictConfig, run: Run) -> None:
    """Fit all detectors to the training pictures, set thresholds on the validation pictures, save both and the model.

    Raises:
        UserError: the data have fewer than two classes with training pictures; see `Fitted.fit`.
    """
    model = load(config.model).to(machine.choose_device(config.device))
    data = build.build_data(config, model.encoder)
    find_broken(data, run)
    records = data.records
    train = (records.labels >= 0) & (np.asarray(records.table["split"].to_pylist()) == "train")
    val = np.asarray(records.table["split"].to_pylist()) == "val"
    if len(np.unique(records.labels[train])) < 2:
        raise UserError(f"{records.name} has training pictures of fewer than two classes: nothing is known to be known")
    features, labels = features_of(config, model, data), records.labels[train]
    watcher = make_watcher(config, model, records.class_names, features[torch.from_numpy(train)], labels)
    fitted = Fitted.fit(
        watcher.signals(features[torch.from_numpy(train)]),
        labels,
        watcher.signals(features[torch.from_numpy(val)]),
        names=config.detectors,
        options=detector_options(config),
        false_alarms=config.false_alarms,
        seed=config.seed,
    )
    notes = [*records.notes, *fitted.notes]
    towers = saved_towers(config.model) or "inside"
    save_model(Model(model.encoder, watcher.classifier, templates_of(config)), run.folder / "model", towers=towers)
    fitted.save(run.folder / "detectors")
    write_manifest(run.folder / "manifest.json", records, data.choice or Choice(None, config.data.split_seed))
    write_json(run.folder / ABOUT, {"classes": list(records.class_names), "model": str(config.model)})
    run.finish(pictures=len(fitted.known), held_out=len(fitted.held_out), classes=len(records.class_names))
    say(notes)
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("detector", "threshold"):
        shown.add_column(name, justify="left" if name == "detector" else "right")
    for name, threshold in fitted.thresholds.items():
        shown.add_row(name, f"{threshold:.4g}")
    console.print()
    console.print(shown)
    console.print(
        f"\n  fitted to {len(fitted.known):,} pictures of {len(records.class_names):,} classes; at most "
        f"{100 * fitted.false_alarms:g} % of {len(fitted.held_out):,} others lie beyond a threshold"
    )
    console.print(
        f"  next        python -m clipkit.discover action=score fitted={as_typed(run.folder)} images=DIR",
        soft_wrap=True,
    )


def load_known(folder: str | Path, config: DictConfig) -> Known:
    """What `action=fit` left in a folder.

    Raises:
        UserError: nothing, or only a part.
    """
    place = Path(folder).expanduser()
    fitted = Fitted.load(place / "detectors")
    model = load_model(place / "model").to(machine.choose_device(config.device))
    try:
        names = json.loads((place / ABOUT).read_text())["classes"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{place} holds no complete detectors: {error}; fit again") from error
    classifier = model.classifier
    if classifier is None or list(classifier.class_names) != names:  # type: ignore[arg-type]  # a Classifier's names
        raise UserError(f"{place}: its model and its detectors are not of the same classes; fit again")
    return Known(place, Watcher(model, model.zero_shot(names).prototypes, classifier), fitted)
