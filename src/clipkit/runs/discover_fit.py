"""Detectors of the classes of a data set, as a folder that pictures can be scored with.

Run: python -m clipkit.discover action=fit data=emoji data.shots=16 name=known
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table

from clipkit.data.manifest import Choice, write_manifest
from clipkit.data.withholding import withhold
from clipkit.discovery.fitted import Fitted
from clipkit.discovery.knowing import fit_known, known_pictures
from clipkit.discovery.protocol import of_records
from clipkit.discovery.watching import Watcher
from clipkit.errors import UserError
from clipkit.models.folder import load_model, save_model, saved_towers
from clipkit.models.model import Model
from clipkit.runs import machine
from clipkit.runs.discover_setup import (
    detector_options,
    features_of,
    find_broken,
    make_watcher,
    templates_of,
    whole_data,
)
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
    data = whole_data(config, model)
    find_broken(data, run)
    records, choice = data.records, data.choice
    if config.data.withhold is not None:
        records, _ = withhold(records, config.data.withhold, seed=config.data.split_seed)
    if choice is None:  # else a manifest has chosen
        records, choice = known_pictures(records, shots=config.data.shots, split_seed=config.data.split_seed)
    own = model.classifier
    if config.classifier == "own" and own is not None and tuple(own.class_names) != records.class_names:  # type: ignore[arg-type]  # a Classifier's names
        raise UserError("classifier=own needs a model whose classes are those of the data: take few_shot or zero_shot")
    features = features_of(config, model, data)
    train, val = records.select("train"), records.select("val")
    labelled = train.labels >= 0
    if len(np.unique(train.labels[labelled])) < 2:
        raise UserError(f"{records.name} has training pictures of fewer than two classes: nothing is known to be known")
    fitted, watcher = fit_known(
        partial(make_watcher, config, model),
        records.class_names,
        (of_records(train, data.records, features)[torch.from_numpy(labelled)], train.labels[labelled]),
        of_records(val, data.records, features),
        detectors=config.detectors,
        options=detector_options(config),
        false_alarms=config.false_alarms,
    )
    notes = [*records.notes, *fitted.notes]
    towers = saved_towers(config.model) or "inside"
    save_model(Model(model.encoder, watcher.classifier, templates_of(config)), run.folder / "model", towers=towers)
    fitted.save(run.folder / "detectors")
    write_manifest(run.folder / "manifest.json", records, choice or Choice(None, config.data.split_seed))
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
        names = list(json.loads((place / ABOUT).read_text())["classes"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{place} holds no complete detectors: fit again ({error})") from error
    classifier = model.classifier
    if classifier is None or list(classifier.class_names) != names:  # type: ignore[arg-type]  # a Classifier's names
        raise UserError(f"{place}: its model and its detectors are not of the same classes; fit again")
    return Known(place, Watcher(model, model.zero_shot(names).prototypes, classifier), fitted)
