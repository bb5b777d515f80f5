"""The end of a run: evaluators, files, report, loggers' pictures, and the closing table."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from rich.table import Table

from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.evaluation import EVALUATORS, FAMILIES, Evaluator, Result, evaluate
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.model import Model
from clipkit.plots import curves
from clipkit.runs.metrics_file import on_one_axis, read_metrics
from clipkit.runs.progress import ProgressReporter, as_typed, console, say
from clipkit.runs.record import Run
from clipkit.runs.report import metrics_table, write_report
from clipkit.runs.tracking import tell

__all__ = [
    "choose_evaluators",
    "choose_split",
    "closing_table",
    "evaluate_model",
    "evaluate_training",
    "opening",
    "places",
    "show_finished",
    "title",
    "training_curves",
    "write_everything",
]

NO_TEST_DATA = "no test data: a stream is evaluated on the shards of data.test_root, else of data.val_root"


def choose_evaluators(
    names: Sequence[str] | None, *, after_training: bool = False, configured: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The evaluators to ask, and what is to be said of the choice.

    Args:
        names: of evaluators and families; None means those that are asked by default (`Evaluator`).
        after_training: the default at the end of a training.
        configured: evaluators with pictures of their own that have been given them.

    Raises:
        UserError: no such name, or an evaluator asked by name needs a library that is not there. Of a family those that
            cannot be asked are left out.
    """
    if names is None:
        kinds = EVALUATORS.items()
        return [name for name, kind in kinds if kind.by_default and (kind.after_training or not after_training)], []
    chosen: list[str] = []
    notes: list[str] = []
    for name in names:
        if name not in EVALUATORS and name not in FAMILIES:
            near = get_close_matches(name, (*EVALUATORS, *FAMILIES), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"evaluators: no {name}; {hint}choose from {', '.join((*EVALUATORS, *FAMILIES))}")
        if name in EVALUATORS:
            EVALUATORS[name].check_installed()
            chosen.append(name)
            continue
        for member in FAMILIES[name]:
            if EVALUATORS[member].own_pictures and member not in configured:
                notes.append(f"{name} without {member}: clipkit.evaluate asks it where {member}.file is given")
                continue
            try:
                EVALUATORS[member].check_installed()
            except UserError as error:
                notes.append(f"{name} without {error}")
            else:
                chosen.append(member)
    return list(dict.fromkeys(chosen)), notes


def choose_split(data: PairData, asked: str = "auto") -> str:
    """The split to evaluate: what was asked for, else test, else val, else all; of a stream test or val.

    Raises:
        UserError: there is no such split, or a stream without pictures to evaluate on.
    """
    have = [split for split in ("test", "val", "train") if len(data.split(split))]
    if isinstance(data, StreamData) and not have:
        raise UserError(NO_TEST_DATA)
    if asked != "auto":
        if asked not in (*have, "all"):
            raise UserError(f"split={asked}: {data.records.name} has {', '.join(have)}")
        return asked
    return have[0] if have and have[0] != "train" else "all"


def evaluate_training(
    model: Model, data: PairData, names: Sequence[str] | None, *, features: FrozenFeatures | None = None
) -> tuple[Result, list[str]]:
    """The evaluation at the end of training, and what is to be said of it; a stream may have nothing to evaluate on.

    Args:
        model, data, names: whom to ask about what.
        features: the store, where the image tower is as it was before training.
    """
    if isinstance(data, StreamData) and not len(data.records):
        console.print(f"  note: {NO_TEST_DATA}", soft_wrap=True, markup=False)
        return Result(), [NO_TEST_DATA]
    split = choose_split(data)
    chosen, notes = choose_evaluators(names, after_training=True)
    return evaluate_model(model, data, chosen, split, stored=None if isinstance(data, StreamData) else features), notes


def evaluate_model(
    model: Model,
    data: PairData,
    names: Sequence[str],
    split: str,
    *,
    made: Mapping[str, Evaluator] | None = None,
    stored: FrozenFeatures | None = None,
    must_fit: bool = False,
) -> Result:
    """Ask the evaluators, with progress shown; `made` need more than their name; the rest as in `evaluate`."""
    ready = dict(made or {})
    evaluators = [ready[name] if name in ready else EVALUATORS[name]() for name in names]
    with ProgressReporter().showing() as report:
        if stored is not None:
            stored.on_progress = report
        return evaluate(model, data, evaluators, split=split, on_progress=report, stored=stored, must_fit=must_fit)


def write_everything(
    run: Run,
    config: DictConfig,
    result: Result,
    *,
    headline: str | None = None,
    validation: Mapping[str, float] | None = None,
    loggers: Sequence[Logger] = (),
    on: tuple[Model, PairData] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """`metrics.json`, tables, plots, `report.html`, and the same numbers and pictures to the loggers.

    What `validation` said of the model stands in `metrics.json` beside the result's numbers. Trackers are
    shown a few pictures with answers: `on` are the model and its data. `headline`: the report's; else the run's.
    """
    run.note_cost()  # the report shows it
    run.write_results(result, validation=validation)
    split = choose_split(on[1]) if on is not None and len(on[1].records) else None
    tell(loggers, run, result, validation=validation, asked=on, split=split)
    if config.report:
        try:
            write_report(
                run.folder / "report.html",
                title=headline or title(config),
                lead=f"{run.folder.name} · {run.about.get('started', '')[:10]}",
                metrics=result.metrics,
                figures=result.figures,
                about=run.about,
                config=OmegaConf.to_yaml(config, resolve=True),
                notes=notes,
            )
        except OSError as error:
            raise UserError(f"the report could not be written to {run.folder}: {error}") from error


def training_curves(folder: Path) -> dict[str, Figure]:
    """The figure of `metrics.csv`: loss, validation recall and learning rate over all steps; empty if none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    table, starts = on_one_axis(read_metrics(path))
    wanted = {
        "Loss": {"training": "train/loss_step", "validation": "val/loss"},
        "Validation recall@1": {"picture → caption": "val/i2t_recall@1", "caption → picture": "val/t2i_recall@1"},
        "Validation accuracy": {"top-1": "val/top1", "weighted F1": "val/f1_weighted"},
        "Learning rate": _rates(table["name"]),
    }
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for title, lines in wanted.items():
        for label, name in lines.items():
            rows = table[table["name"] == name]
            if len(rows):
                panels.setdefault(title, {})[label] = (rows["at"].tolist(), rows["value"].tolist())
    return {"training": curves(panels, xlabel="optimiser step", boundaries=starts)} if panels else {}


def _rates(names: Any) -> dict[str, str]:
    found = [name for name in dict.fromkeys(names) if str(name).startswith("lr/") and "no_decay" not in str(name)]
    return {name.removeprefix("lr/"): name for name in found}


def closing_table(title: str, metrics: Mapping[str, float], places: Mapping[str, Any]) -> None:
    """Print the numbers and where things are."""
    header, rows = metrics_table(metrics)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table if rows else title)
    console.print()
    for what, place in places.items():
        console.print(f"  {what:<11} {place}", soft_wrap=True)


def title(config: DictConfig) -> str:
    """The headline of a run: approach, backbone and data by the names they were chosen with."""
    choices = HydraConfig.get().runtime.choices
    return " · ".join(str(choices[group]) for group in ("approach", "backbone", "data") if group in choices)


def opening(run: Run, config: DictConfig, data: PairData, notes: Sequence[str]) -> None:
    """Say what is about to happen."""
    console.print(f"[bold]{title(config)}[/bold]  seed {config.seed}  →  {as_typed(run.folder)}", soft_wrap=True)
    counts = ", ".join(f"{split} {data.count(split):,}" for split in ("train", "val", "test"))
    console.print(f"  pictures: {counts}")
    say(notes)


def show_finished(run: Run) -> None:
    """A run that is already complete: its numbers again, nothing else."""
    metrics = json.loads((run.folder / "metrics.json").read_text())
    closing_table(f"{run.folder} is finished", metrics, places(run))


def places(run: Run) -> dict[str, str]:
    """Where things are, and how long it took."""
    wall = run.about.get("wall_s", 0) + run.about.get("earlier_wall_s", 0)
    known = {"report": "report.html", "model": "model", "numbers": "metrics.json"}
    found = {what: str(as_typed(run.folder) / name) for what, name in known.items() if (run.folder / name).exists()}
    if "model" in found:
        found["use it"] = f'clipkit.load("{as_typed(run.folder)}")'
    return {**found, "took": f"{wall:.0f} s, {run.about.get('peak_memory_mb', 0) / 1000:.1f} GB of memory at most"}
