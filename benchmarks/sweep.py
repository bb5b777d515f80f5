"""What a sweep costs: 200 trials of a head on stored features, and what of a trial is scheduling, beside plain Optuna.

Run: python -m benchmarks.sweep        (writes a section of benchmarks/SWEEPS.md)

Scheduling is the wall time of a sweep in one process less that of its trials (training, evaluation, their files). The
peer is Optuna as its documentation shows it: `study.optimize` on SQLite, four parameters, three reports a trial; the
same is asked of clipkit's study, in turns.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from benchmarks.peers import environment, write_section
from clipkit.runs.compose import compose_config
from clipkit.runs.study.plan import Plan, read_plan
from clipkit.runs.study.storage import open_study

LINE = ("sweep=few_shot", "approach=mlp", "evaluators=[classify]")
GOAL_S, GOAL_MS = 120, 50


def swept(folder: Path, name: str, *more: str) -> float:
    """Seconds of a whole `clipkit.sweep`."""
    began = time.perf_counter()
    line = [sys.executable, "-m", "clipkit.sweep", *LINE, f"name={name}", *more]
    subprocess.run(line, cwd=folder, env=environment(2), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def scheduling(folder: Path) -> float:
    """Milliseconds a trial outside of the trials, of a sweep that one process has made."""
    trials = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}").get_trials()
    walls = [
        json.loads((folder / "trials" / f"{trial.number:04d}" / "run.json").read_text())["wall_s"] for trial in trials
    ]
    # the first trial loads the towers
    begun, ended = trials[1].datetime_start, trials[-1].datetime_complete
    assert begun is not None
    assert ended is not None
    return ((ended - begun).total_seconds() - sum(walls[1:])) / (len(trials) - 1) * 1e3


def ours(place: Path, plan: Plan, trials: int) -> float:
    """Milliseconds a trial of clipkit's study: drawn, reported three times, finished."""
    study = open_study(place, plan, compose_config("sweep", LINE).sweep, seed=0)
    began = time.perf_counter()
    for number in range(trials):
        claim = study.claim(trials)
        assert claim is not None
        for epoch in (5, 10, 15):
            study.report(claim, epoch, number % 7 + epoch)
            study.drawing.is_hopeless({epoch: number % 7 + epoch})
        study.finish(claim, [number % 7], TrialState.COMPLETE)
    took = time.perf_counter() - began
    study.close()
    return took / trials * 1e3


def theirs(place: Path, plan: Plan, trials: int) -> float:
    """The same of `study.optimize`."""
    study = optuna.create_study(
        storage=f"sqlite:///{place / 'plain.db'}", direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(),
    )  # fmt: skip

    def objective(trial: optuna.Trial) -> float:
        for one in plan.present:
            trial._suggest(one.key, one.distribution())
        for epoch in (5, 10, 15):
            trial.report(trial.number % 7 + epoch, epoch)
            trial.should_prune()
        return trial.number % 7

    began = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return (time.perf_counter() - began) / trials * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = compose_config("sweep", LINE)
    plan = read_plan(config, LINE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        swept(folder, "warm", "sweep.trials=2", "sweep.processes=1")  # the features are stored
        walls, own, plain, mine = [], [], [], []
        for turn in range(options.repeats):
            walls.append(swept(folder, f"both{turn}", f"sweep.trials={options.trials}"))
            swept(folder, f"one{turn}", "sweep.trials=60", "sweep.processes=1")
            own.append(scheduling(folder / f"outputs/sweep/one{turn}"))
            for measure, found in ((theirs, plain), (ours, mine)):
                place = folder / f"study{turn}"
                place.mkdir(exist_ok=True)
                found.append(measure(place, plan, 100))
                shutil.rmtree(place)
            print(
                f"  turn {turn + 1}: {walls[-1]:.0f} s, {own[-1]:.0f} ms, {plain[-1]:.0f} and {mine[-1]:.0f} ms",
                flush=True,
            )
    text = f"""
Heads of `approach=mlp` on the embedded set (1,247 pictures, four views), towers frozen; medians of {options.repeats} turns.

| | |
|---|---|
| {options.trials} trials, the whole command from start to report (goal: below {GOAL_S} s) | {statistics.median(walls):.0f} s ({min(walls):.0f} … {max(walls):.0f}) |
| of a trial in one process, all but training, evaluation and files (goal: below {GOAL_MS} ms) | {statistics.median(own):.0f} ms |
| a study alone, four parameters and three reports a trial, 100 trials: clipkit's | {statistics.median(mine):.0f} ms |
| the same, Optuna's `study.optimize` | {statistics.median(plain):.0f} ms ({statistics.median(plain) / statistics.median(mine):.1f} times) |"""  # noqa: E501
    write_section("A sweep of heads", text, ["optuna"], page="SWEEPS.md")


if __name__ == "__main__":
    main()
