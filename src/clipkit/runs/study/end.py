"""What a sweep leaves: the table of its trials, plots, the best configuration as an experiment, a page, the screen.

Used by: clipkit.sweep
"""

import html
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from clipkit.evaluation import Result
from clipkit.plots import objective_front, parallel_coordinates, parameter_importances, trial_history
from clipkit.runs.page import cards, figure_image, how_made, section, table, write_run_page
from clipkit.runs.progress import as_typed, console
from clipkit.runs.record import Run, read_json
from clipkit.runs.study.best import write_experiment
from clipkit.runs.study.plan import Plan
from clipkit.runs.study.storage import ERROR, Study
from clipkit.runs.study.worker import trial_folder

__all__ = ["leave", "show"]

SHOWN = 5  # trials on the screen
LISTED = 200  # on the page
TITLES = {
    "history": "Trial by trial",
    "importance": "What matters",
    "parallel": "Which values the good trials share",
    "front": "Two objectives",
}


def leave(run: Run, plan: Plan, study: Study, config: DictConfig, *, title: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write everything but `run.json`; returns the table of trials, the best first, and the figures by name."""
    trials = study.trials()
    rows = table_of(plan, study, trials)
    figures = _figures(plan, study, trials)
    best = _best(study, trials)
    metrics: dict[str, float] = {}
    for place, trial in enumerate(best):
        name = "best" if place == 0 else f"front_{trial.number:04d}"
        metrics = metrics or _read(trial_folder(study.folder, trial.number) / "metrics.json")
        _write_best(study.folder / "experiment" / f"{name}.yaml", plan, study, trial)
    run.write_results(Result(metrics, {}, figures), dpi=150)
    rows.to_csv(study.folder / "trials.csv", index=False)
    if config.report:
        header, lines = _grid(rows)
        folder = study.folder
        parts = [
            cards(_headline(plan, trials, best)),
            *(section(TITLES[name], figure_image(figure, TITLES[name])) for name, figure in figures.items()),
            section(f"Trials ({len(lines)} of {len(rows)}, the best first)", table(header, lines, texts=0)),
            section("Train the best one", f"<pre>{html.escape(how_to_train(folder))}</pre>"),
            how_made(run.about, OmegaConf.to_yaml(config, resolve=True)),
        ]
        write_run_page(folder, title=title, lead=f"{folder.name} · {run.about.get('started', '')[:10]}", parts=parts)
    return rows, figures


def table_of(plan: Plan, study: Study, trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """A row a trial, the best first; then those that are pruned, failed or not finished."""
    rows = []
    for trial in trials:
        values = trial.values if trial.state is TrialState.COMPLETE else [None] * len(plan.objectives)
        took = trial.duration.total_seconds() if trial.duration is not None else None
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower().replace("fail", "failed"),
                **{one.metric: value for one, value in zip(plan.objectives, values, strict=True)},
                **{one.key: trial.params.get(one.key) for one in plan.parameters},
                "seconds": took,
                "error": trial.user_attrs.get(ERROR),
            }
        )
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    first = plan.objectives[0]
    return found.sort_values(first.metric, ascending=not first.maximize, na_position="last", kind="stable")


def show(plan: Plan, study: Study, rows: pd.DataFrame, *, title: str, took: str) -> None:
    """The best trials and where things are, on the screen."""
    parameters = [one.key for one in plan.parameters if one.key in rows and rows[one.key].notna().any()]
    metrics = [one.metric for one in plan.objectives]
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for name in ("trial", *metrics):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("with")
    best = rows[rows["state"] == "complete"].head(SHOWN) if len(rows) else rows
    for _, row in best.iterrows():
        known = [f"{key.split('.')[-1]} {_short(row[key])}" for key in parameters if _short(row[key]) != "–"]
        shown.add_row(str(row["trial"]), *(_number(row[name]) for name in metrics), ", ".join(known))
    counts = Counter(rows["state"]) if len(rows) else Counter[str]()
    console.print()
    console.print(shown if len(best) else title)
    console.print()
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    console.print(f"  trials      {len(rows)}: {said}")
    files = {"report": "report.html", "table": "trials.csv", "best": "experiment/best.yaml", "study": "study.db"}
    for what, name in files.items():
        if (study.folder / name).exists():
            console.print(f"  {what:<11} {as_typed(study.folder) / name}", soft_wrap=True)
    if len(best):
        console.print(f"  train it    {how_to_train(study.folder)}", soft_wrap=True)
    console.print(f"  took        {took}")


def how_to_train(folder: Path) -> str:
    """The command that trains the best trial's configuration."""
    return f"python -m clipkit.train --config-dir {as_typed(folder)} experiment=best"


def _best(study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best trial; of several objectives all that none beats, the best by the first objective first."""
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        return []
    if len(study.study.directions) == 1:
        return [study.study.best_trial]
    sign = -1 if study.study.directions[0] is optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(study.study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))


def _write_best(path: Path, plan: Plan, study: Study, trial: FrozenTrial) -> None:
    folder = trial_folder(study.folder, trial.number)
    record = read_json(folder / "run.json") or {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except OSError:
        return  # somebody has removed it
    assert isinstance(config, dict)
    judged = ", ".join(f"{one.metric} {value:.6g}" for one, value in zip(plan.objectives, trial.values, strict=True))
    headline = [f"Trial {trial.number} of the sweep {as_typed(study.folder)}: {judged}.", how_to_train(study.folder)]
    write_experiment(
        path,
        config={str(key): value for key, value in config.items()},
        choices=record.get("choices", {}),
        overrides=record.get("overrides", []),
        headline=headline,
    )


def _figures(plan: Plan, study: Study, trials: Sequence[FrozenTrial]) -> dict[str, Figure]:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        return {}
    first = plan.objectives[0]
    lost = {
        name: [trial.number for trial in trials if trial.state is state]
        for name, state in (("pruned", TrialState.PRUNED), ("failed", TrialState.FAIL))
    }
    values = [trial.values[0] for trial in complete]
    figures = {
        "history": trial_history(
            {trial.number: trial.values[0] for trial in complete},
            metric=first.metric, maximize=first.maximize, unfinished=lost,
        )
    }  # fmt: skip
    columns = {
        one.key: [trial.params.get(one.key) for trial in complete]
        for one in plan.parameters
        if len({trial.params.get(one.key) for trial in complete} - {None}) > 1
    }
    if columns and max(values) > min(values):
        logs = [one.key for one in plan.parameters if one.log]
        with suppress(ValueError, RuntimeError):  # too few trials, or none with the same parameters
            shares = optuna.importance.get_param_importances(
                study.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                params=[key for key, column in columns.items() if None not in column],
                target=None if len(plan.objectives) == 1 else lambda trial: trial.values[0],
            )  # fmt: skip
            figures["importance"] = parameter_importances(shares, metric=first.metric)
        figures["parallel"] = parallel_coordinates(
            columns, values, metric=first.metric, maximize=first.maximize, logs=logs
        )
    if len(plan.objectives) > 1:
        numbers = [trial.number for trial in complete]
        front = {trial.number for trial in study.study.best_trials}
        figures["front"] = objective_front(
            [(trial.values[0], trial.values[1]) for trial in complete],
            [row for row, number in enumerate(numbers) if number in front],
            metrics=(first.metric, plan.objectives[1].metric),
            names=numbers,
        )
    return figures


def _headline(plan: Plan, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> dict[str, str]:
    counts = Counter(trial.state for trial in trials)
    found = {one.metric: f"{best[0].values[k]:.4f}" for k, one in enumerate(plan.objectives)} if best else {}
    found |= {"trials complete": f"{counts[TrialState.COMPLETE]:,}", "pruned": f"{counts[TrialState.PRUNED]:,}"}
    return found | ({"failed": f"{counts[TrialState.FAIL]:,}"} if counts[TrialState.FAIL] else {})


def _grid(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The columns that have something in them, by the last part of their names."""
    known = [name for name in rows.columns if rows[name].notna().any()]
    lines = [[_short(row[name]) if name != "trial" else str(row[name]) for name in known] for _, row in rows.iterrows()]
    return [name if "/" in name else name.split(".")[-1] for name in known], lines[:LISTED]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value == value else _number(value)


def _read(path: Path) -> dict[str, float]:
    try:
        found: dict[str, float] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found
