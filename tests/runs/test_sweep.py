"""`clipkit.sweep` by its command: trials that are runs of their own, and that no interruption loses or repeats."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from wandb_files import offline_folders, summary

from clipkit.models.folder import save_model
from conftest import Command
from galleries import small_model

ON = ("sweep=few_shot", "approach=aamp_mlp", "data=synthetic", "data.num_images=160", "data.shots=8", "trainer=cpu",
      "backbone=checkpoint", "approach.stages.head.epochs=6", "sweep.startup_trials=4")  # fmt: skip


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("aligned") / "model"
    save_model(small_model(tmp_path_factory.mktemp("words")), folder)
    return f"backbone.path={folder}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Path, aligned: str) -> Command:
    """A finished sweep of eight trials in one process, none of them pruned: outputs/sweep/x."""
    clipkit = Command(tmp_path_factory.mktemp("sweep"), cache)
    done = clipkit("sweep", *ON, aligned, "sweep.trials=8", "sweep.processes=1", "sweep.pruner=none", "name=x")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 trials (heads on stored features)" in done.stdout
    assert "train it    python -m clipkit.train --config-dir outputs/sweep/x experiment=best" in done.stdout
    return clipkit


def study(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def rows_of(folder: Path) -> list[str]:
    """Everything that the study holds."""
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as connection:
        return list(connection.iterdump())


def said(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text())
    return content


def test_every_trial_leaves_its_numbers_and_how_it_was_made(swept: Command) -> None:
    folder = swept.folder / "outputs/sweep/x"
    trials = study(folder)
    assert [trial.number for trial in trials] == list(range(8))
    table = pd.read_csv(folder / "trials.csv")
    assert sorted(table["trial"]) == list(range(8))
    for trial in trials:
        own = folder / "trials" / f"{trial.number:04d}"
        metrics, record = said(own / "metrics.json"), said(own / "run.json")
        assert metrics["val/f1_weighted"] == trial.values[0]
        assert {"val/loss", "test/top1", "test/f1_weighted"} <= metrics.keys()
        assert record["status"] == "finished"
        assert record["trial"]["params"] == trial.params  # type: ignore[index]
        assert (
            yaml.safe_load((own / "config.yaml").read_text())["approach"]["margin"] == trial.params["approach.margin"]
        )
        assert (own / "tables/test-classification_report.csv").is_file()
        assert table.set_index("trial").loc[trial.number, "val/f1_weighted"] == trial.values[0]
    best = max(trials, key=lambda trial: trial.values[0])
    assert said(folder / "metrics.json") == said(folder / "trials" / f"{best.number:04d}" / "metrics.json")
    assert {file.stem for file in (folder / "plots").glob("*.png")} == {"history", "importance", "parallel"}
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") == 3


def test_a_trial_is_the_training_that_its_folder_names_to_the_bit(swept: Command) -> None:
    folder = swept.folder / "outputs/sweep/x"
    trial = folder / "trials/0003"
    done = swept("train", *said(trial / "run.json")["overrides"], "report=false", "name=again")  # type: ignore[misc]
    assert done.returncode == 0, done.stderr
    again = swept.folder / "outputs/train/again"
    assert (again / "metrics.json").read_text() == (trial / "metrics.json").read_text()
    assert said(again / "run.json")["recipe"] == said(trial / "run.json")["recipe"]


def test_the_best_configuration_is_an_experiment_that_gives_the_same_numbers(swept: Command) -> None:
    folder = swept.folder / "outputs/sweep/x"
    done = swept("train", "--config-dir", str(folder), "experiment=best", "report=false", "name=best")
    assert done.returncode == 0, done.stderr
    assert (swept.folder / "outputs/train/best/metrics.json").read_text() == (folder / "metrics.json").read_text()
    assert said(swept.folder / "outputs/train/best/run.json")["config_dirs"] == [str(folder)]
    done = swept("train", "resume=outputs/train/best")
    assert done.returncode == 0, done.stderr
    shutil.move(folder / "experiment", folder / "moved")
    done = swept("repeat", "run=outputs/train/best")
    shutil.move(folder / "moved", folder / "experiment")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the bit" in done.stdout


@pytest.mark.slow
def test_a_finished_sweep_is_shown_and_a_longer_one_keeps_its_trials(swept: Command, aligned: str) -> None:
    shutil.copytree(swept.folder / "outputs/sweep/x", swept.folder / "outputs/sweep/longer")
    folder = swept.folder / "outputs/sweep/longer"
    line = (*ON, aligned, "sweep.processes=1", "sweep.pruner=none", "name=longer")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    done = swept("sweep", *line, "sweep.trials=8", "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "8: 8 complete" in done.stdout
    changed = [path.name for path, at in before.items() if path.is_file() and path.stat().st_mtime_ns != at]
    assert [name for name in changed if not name.startswith("study.db")] == []
    for line_again in ((*line, "sweep.trials=10", "resume=auto"), ("resume=outputs/sweep/longer", "sweep.trials=11")):
        done = swept("sweep", *line_again)
        assert done.returncode == 0, done.stderr
    assert [trial.number for trial in study(folder)] == list(range(11))
    kept = [path for path in before if "trials" in path.parts]
    assert kept
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


@pytest.mark.slow
def test_what_cannot_go_on_is_refused_and_nothing_is_touched(swept: Command, aligned: str) -> None:
    folder = swept.folder / "outputs/sweep/x"
    line = (*ON, aligned, "sweep.trials=9", "sweep.processes=1", "sweep.pruner=none", "name=x")
    before = rows_of(folder)
    taken = swept("sweep", *line)
    other = swept("sweep", *line, "sweep.space.approach.margin.high=0.4", "resume=auto")
    assert [taken.returncode, other.returncode] == [2, 2]
    assert "already holds a run (finished)" in taken.stderr
    assert "another configuration" in other.stderr
    assert "margin" in other.stderr
    (folder / "config.yaml").rename(folder / "config.away")  # the study itself still knows
    other = swept("sweep", *line, "sweep.space.approach.margin.high=0.4", "resume=auto")
    (folder / "config.away").replace(folder / "config.yaml")
    assert other.returncode == 2
    assert "the study of another space" in other.stderr
    assert rows_of(folder) == before


@pytest.mark.parametrize("how", ["damaged", "locked", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_database_that_cannot_be_used_is_named_and_left_alone(swept: Command, aligned: str, how: str) -> None:
    folder = swept.folder / f"outputs/sweep/{how}"
    shutil.copytree(swept.folder / "outputs/sweep/x", folder)
    place = folder / "study.db"
    whole = place.read_bytes()
    holder = None
    if how == "damaged":
        place.write_bytes(whole[:4096] + bytes(range(256)) * ((len(whole) - 4096) // 256))
    elif how == "cut":
        place.write_bytes(whole[: len(whole) // 3])
    else:
        # in a process of its own: whoever closes the file here would give up this process's locks on it
        code = f"import sqlite3, sys; c = sqlite3.connect({str(place)!r}, isolation_level=None); "
        code += "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
        line = [sys.executable, "-c", code]
        holder = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
    before = place.read_bytes()
    done = swept("sweep", *ON, aligned, "sweep.trials=9", "sweep.processes=1", "sweep.pruner=none", f"name={how}",
                 "sweep.wait=1", "resume=auto")  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert ("another program holds it" if how == "locked" else "it is damaged") in done.stderr
    assert "Traceback" not in done.stderr
    assert str(place.name) in done.stderr
    if holder is not None:
        holder.communicate("")
    assert place.read_bytes() == before
    assert len(list((folder / "trials").iterdir())) == 8


@pytest.mark.slow
def test_two_processes_share_a_study_and_make_exactly_as_many_as_asked(clipkit: Command, aligned: str) -> None:
    line = (*ON, aligned, "sweep.trials=14", "sweep.processes=1", "name=both", "resume=auto")
    others = [clipkit.start("sweep", *line) for _ in range(2)]
    outputs = [other.communicate(timeout=300)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0], outputs
    trials = study(clipkit.folder / "outputs/sweep/both")
    assert [trial.number for trial in trials] == list(range(14))
    assert all(trial.state.is_finished() for trial in trials)
    owners = clipkit.folder / "outputs/sweep/both/.owners"
    assert len({(owners / f"trial_{trial.number}").read_text() for trial in trials}) == 2


def killed_and_resumed(clipkit: Command, line: tuple[str, ...], folder: Path, kills: int) -> None:
    """Start the sweep again and again; SIGKILL it when it has made some more trials."""
    draws = random.Random(7)
    for _ in range(kills):
        process = subprocess.Popen(
            clipkit.line("sweep", *line), cwd=clipkit.folder, env=clipkit.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        begun = len(list(folder.glob("trials/*")))
        deadline = time.monotonic() + 120
        while len(list(folder.glob("trials/*"))) <= begun and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def same_as_undisturbed(clipkit: Command, aligned: str, *, kills: int, trials: int, processes: int) -> None:
    line = (*ON, aligned, f"sweep.trials={trials}", f"sweep.processes={processes}", "sweep.pruner=none", "resume=auto")
    folder = clipkit.folder / "outputs/sweep/killed"
    killed_and_resumed(clipkit, (*line, "name=killed"), folder, kills)
    assert not (folder / "trials.csv").exists()
    for name in ("killed", "calm"):
        done = clipkit("sweep", *line, f"name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
    found, calm = study(folder), study(clipkit.folder / "outputs/sweep/calm")
    for one in (found, calm):
        assert [trial.number for trial in one] == list(range(trials))
        assert {trial.state for trial in one} == {optuna.trial.TrialState.COMPLETE}
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [f"{number:04d}" for number in range(trials)]
    if processes == 1:  # several finish in an order of their own
        assert [(trial.params, trial.values) for trial in found] == [(trial.params, trial.values) for trial in calm]


@pytest.mark.slow
def test_a_killed_sweep_ends_as_one_that_was_not(clipkit: Command, aligned: str) -> None:
    same_as_undisturbed(clipkit, aligned, kills=1, trials=9, processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_five_kills_lose_and_repeat_nothing(clipkit: Command, aligned: str, processes: int) -> None:
    same_as_undisturbed(clipkit, aligned, kills=5, trials=30, processes=processes)


@pytest.mark.slow
def test_told_to_stop_it_says_how_to_go_on(clipkit: Command, aligned: str) -> None:
    line = (*ON, aligned, "sweep.trials=500", "sweep.processes=1", "name=long", "logger=wandb")
    process = clipkit.start("sweep", *line)
    folder = clipkit.folder / "outputs/sweep/long"
    while process.poll() is None and len(list(folder.glob("trials/*/run.json"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "python -m clipkit.sweep resume=outputs/sweep/long" in output
    assert said(folder / "run.json")["status"] == "interrupted"
    assert summary(offline_folders(folder)[0])["status"] == "interrupted"
    done = clipkit("sweep", "resume=outputs/sweep/long", f"sweep.trials={len(study(folder)) + 1}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_pruned_trials_say_so_and_several_objectives_have_a_front(clipkit: Command, aligned: str) -> None:
    line = (*ON, aligned, "approach.stages.head.epochs=16", "sweep.processes=1", "report=false")
    done = clipkit("sweep", *line, "sweep.trials=20", "name=pruned", "sweep.space.optimizer.lr.low=1e-6")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/sweep/pruned"
    states = {trial.number: trial.state.name for trial in study(folder)}
    assert "PRUNED" in states.values()
    for number, state in states.items():
        own = folder / "trials" / f"{number:04d}"
        assert said(own / "run.json")["status"] == {"PRUNED": "pruned", "COMPLETE": "finished"}[state]
        assert (own / "metrics.json").exists() == (state == "COMPLETE")
    done = clipkit("sweep", *line, "sweep.trials=6", "name=two", "sweep.objectives=[val/f1_weighted,val/loss]")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/sweep/two"
    values = {trial.number: trial.values for trial in study(folder)}
    beaten = {
        number for number, (f1, loss) in values.items()
        if any(other[0] >= f1 and other[1] <= loss and other != [f1, loss] for other in values.values())
    }  # fmt: skip
    front = [values[number] for number in values if number not in beaten]
    written = {yaml.safe_load(file.read_text())["approach"]["margin"] for file in (folder / "experiment").iterdir()}
    assert len(list((folder / "experiment").iterdir())) == len(front)
    assert len(written) == len(front)
    assert (folder / "plots/front.png").is_file()


@pytest.mark.slow
def test_an_objective_that_no_trial_has_ends_the_sweep_with_the_names_that_there_are(
    clipkit: Command, aligned: str
) -> None:
    done = clipkit("sweep", *ON, aligned, "sweep.objectives=[val/recall]", "sweep.processes=1", "name=none")
    assert done.returncode == 2
    assert "leaves no val/recall" in done.stderr
    assert "val/f1_weighted" in done.stderr
    assert len(list((clipkit.folder / "outputs/sweep/none/trials").iterdir())) == 3


@pytest.mark.slow
def test_trials_that_are_runs_are_pruned_resumed_and_kept_apart(clipkit: Command, aligned: str) -> None:
    """N = 1 trains the tower's last group: every trial is a `clipkit.train` of its own."""
    line = ("sweep=few_shot", *ON[1:-2], aligned, "approach.stages.head.epochs=12", "sweep.trials=4", "name=runs")
    line += ("approach.stages.head.train.image_groups=1", "trainer.threads=1", "data.shots=4", "resume=auto")
    process = subprocess.Popen(clipkit.line("sweep", *line), cwd=clipkit.folder, env=clipkit.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    folder = clipkit.folder / "outputs/sweep/runs"
    while process.poll() is None and not (folder / "trials/0001/checkpoints/last.ckpt").is_file():
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = clipkit("sweep", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials (runs)" in done.stdout
    trials = study(folder)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        own = folder / "trials" / f"{trial.number:04d}"
        record = said(own / "run.json")
        assert record["status"] == ("pruned" if trial.state.name == "PRUNED" else "finished")
        assert record["trial"]["number"] == trial.number  # type: ignore[index]
        if trial.values is not None:
            assert said(own / "metrics.json")["val/f1_weighted"] == trial.values[0]
    assert (folder / "experiment/best.yaml").is_file()
