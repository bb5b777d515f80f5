"""How well novelty is noticed and categories are discovered: splits with withheld classes, tables and the page.

Run: python -m clipkit.discover action=evaluate data=emoji
     python -m clipkit.discover action=evaluate data=folder data.root=DIR 'data.withhold=[a,b]'
"""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clipkit.data.datamodule import PairData
from clipkit.data.withholding import withhold
from clipkit.discovery.knowing import known_pictures
from clipkit.discovery.protocol import Looking, Outcome, Split, evaluate_split, of_records
from clipkit.errors import UserError
from clipkit.evaluation import Result
from clipkit.models.model import Model
from clipkit.runs import machine
from clipkit.runs.command_line import quoted
from clipkit.runs.discover_page import Row, show_evaluation, write_evaluation_page
from clipkit.runs.discover_setup import (
    clusterer,
    detector_options,
    features_of,
    find_broken,
    make_watcher,
    names_of,
    whole_data,
)
from clipkit.runs.load import load
from clipkit.runs.progress import console, say
from clipkit.runs.record import Run

__all__ = ["evaluate_discovery"]

SEEN = "as_shipped"  # the row of a model that has seen the withheld classes


def evaluate_discovery(config: DictConfig, run: Run) -> None:
    """Withhold classes `splits` times, ask all detectors, cluster what is novel; write numbers, tables and page.

    Raises:
        UserError: the data have too few classes, or no test pictures of known or withheld ones.
    """
    device = machine.choose_device(config.device)
    model = load(config.model).to(device)
    data = whole_data(config, model)
    find_broken(data, run)
    seeds = [int(config.data.split_seed) + number for number in range(config.splits)]
    splits = [_divide(config, data, seed) for seed in seeds]
    say(splits[0].known.notes)
    pairs, share = list(zip(splits, seeds, strict=True)), config.withhold
    shown, rows, asked = str(config.model), [], model
    if _refits(config):
        say(["the model has seen the withheld classes: its projections are trained anew without them, for each split"])
        refits = [_refit(config, run.folder / "refit" / f"split-{seed}", split, seed) for split, seed in pairs]
        fresh: list[Outcome] = []
        for folder, (split, seed) in zip(refits, pairs, strict=True):
            own = load(folder).to(device)
            asked = own if not fresh else asked
            fresh.append(evaluate_split(split, _looking(config, own, data), share=share, seed=seed))
        rows.append(Row(f"{shown}, without the withheld classes", "", fresh))
    looking = _looking(config, model, data)
    seen = [evaluate_split(split, looking, share=share, seed=seed) for split, seed in pairs]
    rows.append(Row(shown, SEEN if rows else "", seen))
    first = rows[0].outcomes[0]
    embeds = first.embeds[first.flagged]
    names = names_of(config, asked, first.clusters, embeds, origin=first.embeds.mean(0))
    result = Result()
    for row in rows:
        result.metrics |= _metrics(row)
        label = f"-{row.prefix}" if row.prefix else ""
        result.tables[f"detectors{label}"] = row.table()
    result.tables["splits"] = _splits(splits, seeds, rows[0].outcomes)
    notes = [*splits[0].known.notes, *first.notes]
    result.figures = write_evaluation_page(run, config, rows, data, names, notes=notes)
    run.write_results(result)
    run.finish(chosen=rows[0].chosen)
    show_evaluation(run, rows)


def _divide(config: DictConfig, data: PairData, seed: int) -> Split:
    """One draw of withheld classes and shots; named classes are the same in each."""
    key = "withhold" if config.data.withhold is None else "data.withhold"
    known, withheld = withhold(data.records, OmegaConf.select(config, key), seed=seed, key=key)
    known, _ = known_pictures(known, shots=config.data.shots, split_seed=seed)
    for what, part in (("known", known), ("withheld", withheld)):
        if not len(part.select("test")):
            raise UserError(
                f"{data.records.name} has no test pictures of the {what} classes: evaluation asks about those; give a "
                "data set with a test split"
            )
    if len(np.unique(known.select("train").labels)) < 2:
        raise UserError(f"{data.records.name}: fewer than two known classes have training pictures")
    return Split(known, withheld)


def _looking(config: DictConfig, model: Model, data: PairData) -> Looking:
    features = features_of(config, model, data)  # from the store; each model standardises in its own way
    return Looking(
        features=lambda part: of_records(part, data.records, features),
        watcher=partial(make_watcher, config, model),
        names=config.detectors,
        options=detector_options(config),
        false_alarms=config.false_alarms,
        default=str(config.detector),
        cluster=clusterer(config),
    )


def _refits(config: DictConfig) -> bool:
    """Whether a model that has not seen the withheld classes is made: only of the shipped one it is known how."""
    fits = config.model == "emoji_clip" and HydraConfig.get().runtime.choices.get("data") == "emoji"
    if config.refit is True and not fits:
        raise UserError(
            "refit=true trains emoji_clip anew on emoji: of other models it is not known how they were trained. Train "
            "one with data.withhold=[…] and give it as model=…"
        )
    return bool(fits and config.refit in ("auto", True))


def _refit(config: DictConfig, folder: Path, split: Split, seed: int) -> Path:
    """Train the projections of the shipped model on the classes that stay, by its own recipe."""
    names = ",".join(split.withheld.class_names)
    line = [
        *(sys.executable, "-m", "clipkit.train", "experiment=emoji_clip", f"data.withhold=[{names}]"),
        *(f"data.split_seed={seed}", "evaluators=[]", "report=false", f"hydra.run.dir={folder}", "overwrite=true"),
        *(f"cache_dir={quoted(str(config.cache_dir))}", *(["trainer=cpu"] if config.device == "cpu" else [])),
    ]
    console.print(f"  training without {len(split.withheld.class_names)} classes (split {seed}) …")
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"the model could not be trained without the withheld classes:\n{done.stderr or done.stdout}")
    return folder


def _metrics(row: Row) -> dict[str, float]:
    """Means over the splits, `test[/as_shipped]/novelty/<detector>/<what>` and `…/discovery/<what>`."""
    start = "/".join(["test", *([row.prefix] if row.prefix else [])])
    found: dict[str, list[float]] = {}
    for outcome in row.outcomes:
        for detector, values in outcome.metrics.items():
            for what, value in values.items():
                place = f"{start}/novelty" if what != "validation" else start.replace("test", "val", 1) + "/novelty"
                found.setdefault(f"{place}/{detector}/{'auroc' if what == 'validation' else what}", []).append(value)
        for what, value in outcome.discovery.items():
            found.setdefault(f"{start}/discovery/{what}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _splits(splits: Sequence[Split], seeds: Sequence[int], outcomes: Sequence[Outcome]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for split, seed, outcome in zip(splits, seeds, outcomes, strict=True):
        rows.append(
            {
                "split": seed,
                "withheld": "; ".join(split.withheld.class_names),
                "known pictures": int((~outcome.novel).sum()),
                "novel pictures": int(outcome.novel.sum()),
                "chosen": outcome.chosen,
                **outcome.discovery,
            }
        )
    return pd.DataFrame(rows)
