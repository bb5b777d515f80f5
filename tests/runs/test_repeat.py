"""A run repeated from its folder has the same numbers; what is not as it was is named, what cannot be is refused."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.repeated import compare
from clipkit.runs.repeating import Recorded, plan, recorded
from conftest import TINY, Command

Change = Callable[..., Path]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.fixture
def changed(tiny_run: Path, tmp_path: Path) -> Change:
    """Copies the tiny run's record, with other entries in run.json (None: left out) and config.yaml."""

    def change(*, config: dict[str, Any] | None = None, **about: Any) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in ("run.json", "config.yaml", "metrics.json"):
            shutil.copy(tiny_run / name, folder)
        entries = {**read(folder / "run.json"), **about}
        (folder / "run.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
        loaded = OmegaConf.load(folder / "config.yaml")
        for key, value in (config or {}).items():
            OmegaConf.update(loaded, key, value, force_add=True)
        OmegaConf.save(loaded, folder / "config.yaml")
        return folder

    return change


@pytest.mark.slow
def test_a_repeated_run_has_the_same_numbers(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("repeat", f"run={tiny_run}", "name=again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the bit" in done.stdout
    folder = clipkit.folder / "outputs/repeat/again"
    assert (folder / "again/metrics.json").read_bytes() == (tiny_run / "metrics.json").read_bytes()
    about, before, again = (read(f / "run.json") for f in (folder, tiny_run, folder / "again"))
    assert (about["status"], about["same"], about["differences"]) == ("finished", True, {})
    assert (again["seed"], again["hardware"]) == (before["seed"], before["hardware"])
    assert again["recipe"] == before["recipe"]


@pytest.mark.slow
def test_numbers_that_differ_are_listed_with_what_is_not_as_it_was(clipkit: Command, changed: Change) -> None:
    """One epoch instead of three is what this version gives otherwise; one number is another than then."""
    versions = {"torch": "1.0"}
    folder = changed(
        config={"approach.stages.towers.epochs": 1}, versions=versions, git_commit="0" * 40, cwd="/no/longer/there"
    )
    done = clipkit("repeat", f"run={folder}", "name=again")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    for part in (
        "Numbers that differ", "versions · torch: 1.0 →", f"git_commit: {'0' * 40} →", "/no/longer/there",
        "approach.stages.towers.epochs: this version's value is 3; it was run with 1, as then",
    ):  # fmt: skip
        assert part in done.stdout
    again = clipkit.folder / "outputs/repeat/again"
    assert OmegaConf.load(again / "again/config.yaml").approach.stages.towers.epochs == 1
    about = read(again / "run.json")
    assert about["same"] is False
    then, now = (read(place / "metrics.json") for place in (folder, again / "again"))
    assert about["differences"] == {k: [then[k], now[k]] for k in then if then[k] != now[k]}


@pytest.mark.slow
def test_an_evaluation_is_repeated_from_where_it_was_started(clipkit: Command, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, clipkit.folder / "a, b")
    line = ("model=a, b", "data=synthetic", "data.num_images=160", "evaluators=[retrieval]", "name=it's one")
    done = clipkit("evaluate", *line)
    assert done.returncode == 0, done.stderr
    run = clipkit.folder / "outputs/evaluate/it's one"
    clipkit.folder = clipkit.folder / "elsewhere"
    clipkit.folder.mkdir()
    done = clipkit("repeat", f"run={run}", "name=again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clipkit.folder / "outputs/repeat/again/again/metrics.json").read_bytes() == (
        run / "metrics.json"
    ).read_bytes()


@pytest.mark.slow
def test_a_run_of_two_processes_that_was_stopped_and_continued_is_repeated(clipkit: Command) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.threads=1", "name=two")
    image = "backbone.image.name=test_vit"  # without BatchNorm, which processes on the processor cannot share
    line = (*TINY[:3], *two, image, "approach.stages.towers.epochs=30", "report=false")
    process = clipkit.start("train", *line)
    run = clipkit.folder / "outputs/train/two"
    end = time.monotonic() + 300
    while not (run / "checkpoints/last.ckpt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(UserError, match=r"is interrupted .*continue it with"):
        recorded(str(run))
    assert clipkit("train", f"resume={run}").returncode == 0
    done = clipkit("repeat", f"run={run}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs_of_multiruns_and_trials_of_sweeps_are_repeated_by_their_own_choices(changed: Change) -> None:
    trial = {"number": 7, "sweep": "outputs/sweep/x", "params": {}, "values": {}}
    before = recorded(str(changed(trial=trial, command="python -m clipkit.sweep approach=mlp")))
    assert before.command == "train"
    planned = plan(before, cache_dir=None)
    assert planned.overrides[:2] == ["backbone=tiny", "data=synthetic"]
    assert not [text for text in planned.overrides if text.startswith(("name=", "resume=", "overwrite="))]
    assert (planned.put_back, planned.gone, planned.new) == ({}, [], [])


def test_as_many_threads_as_then(changed: Change) -> None:
    config, hardware = {"trainer.threads": None}, {"threads": 3}
    before = recorded(str(changed(config=config, hardware=hardware, overrides=["backbone=tiny", "data=synthetic"])))
    planned = plan(before, cache_dir=None)
    assert "trainer.threads=3" in planned.overrides
    assert planned.environment == {"OMP_NUM_THREADS": "3"}


def test_values_are_put_back_until_nothing_follows_from_them(changed: Change) -> None:
    """data.batch_size on the command line would rule every stage: the stages' own sizes are put back, too."""
    sentences = ["a {}, b", "it's {}"]
    before = recorded(str(changed(config={"data.batch_size": 7, "data.templates": sentences, "seed": 4})))
    planned = plan(before, cache_dir=None)
    assert set(planned.put_back) == {
        "data.batch_size", "data.templates", "seed", "data.seed", "approach.stages.towers.batch_size",
        "approach.stages.heads.batch_size",
    }  # fmt: skip
    again = Recorded(before.folder, "train", {**before.about, "overrides": planned.overrides}, before.config, {})
    assert plan(again, cache_dir=None).put_back == {}


def test_an_experiment_of_ones_own_is_repeated_without_its_file(changed: Change) -> None:
    chosen = {"experiment": "mine", "backbone": "tiny", "data": "synthetic", "approach": "contrastive", "debug": None}
    said = ["experiment=mine", "data.num_images=160", "trainer=cpu"]
    config = {"approach.search": {"seeds": 2}, "trainer.threads": 1}  # a mapping where the options have null
    planned = plan(recorded(str(changed(overrides=said, choices=chosen, config=config))), cache_dir=None)
    assert {"backbone=tiny", "data=synthetic", "approach=contrastive", "trainer.threads=1"} <= set(planned.overrides)
    assert not [text for text in planned.overrides if "mine" in text or text.startswith("debug=")]
    assert planned.overrides.count("trainer=cpu") == 1
    assert any("experiment=mine" in note for note in planned.notes)


def test_a_mapping_in_the_place_of_nothing_is_put_back(changed: Change) -> None:
    planned = plan(recorded(str(changed(config={"backbone.image.model_args": {"depth": 2}}))), cache_dir=None)
    assert (planned.gone, planned.new) == ([], [])
    assert "++backbone.image.model_args={depth:2}" in planned.overrides


def test_keys_that_came_or_went_are_named(changed: Change) -> None:
    before = recorded(str(changed(config={"approach.once": 1})))
    planned = plan(before, cache_dir=None)
    assert planned.gone == ["approach.once"]
    (line,) = compare(before, before, planned).surroundings
    assert line == "keys that this version has no longer: approach.once"


def test_a_manifest_is_the_one_that_the_run_used(changed: Change, tmp_path: Path) -> None:
    said = ["backbone=tiny", "data=synthetic", "data.num_images=160", "data.manifest='other.json'"]
    folder = changed(config={"data.manifest": "other.json"}, overrides=said)
    (folder / "manifest.json").write_text("{}")
    planned = plan(recorded(str(folder)), cache_dir=str(tmp_path / "new, cache"))
    assert f"data.manifest='{folder}/manifest.json'" in planned.overrides
    assert "data.manifest='other.json'" not in planned.overrides
    assert f"cache_dir='{tmp_path}/new, cache'" in planned.overrides


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"status": "failed", "error": "UserError: no room"}, r"is failed \(UserError: no room\), not finished"),
        ({"status": "running"}, "is running, not finished"),
        ({"status": "pruned"}, "is pruned, not finished"),
        ({"overrides": None}, "no command line"),
        ({"command": "python -m clipkit.describe data=emoji"}, "is a run of describe: runs of train and evaluate"),
        ({"command": "python train.py"}, "is a run of no known command"),
    ],
)
def test_what_is_no_finished_run_is_refused(changed: Change, about: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recorded(str(changed(**about)))


def test_a_folder_that_is_no_run_is_refused(changed: Change, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        recorded(str(tmp_path / "none"))
    folder = changed()
    with pytest.raises(UserError, match="holds the runs copy: name one of them"):
        recorded(str(tmp_path))
    (folder / "metrics.json").write_text('{"test/top1": 0.')
    with pytest.raises(UserError, match=r"metrics.json is empty or damaged"):
        recorded(str(folder))
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"metrics.json is missing"):
        recorded(str(folder))
    (folder / "metrics.json").write_text('{"test/top1": 0.5}')
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read"):
        recorded(str(folder))
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match=r"no run folder"):
        recorded(str(folder))


def test_what_this_version_cannot_start_is_refused(changed: Change) -> None:
    before = recorded(str(changed(overrides=["approach=no_longer"])))
    with pytest.raises(UserError, match="its command line is none of this version"):
        plan(before, cache_dir=None)
    outside = {**before.config, "trainer": {**before.config["trainer"], "processes": "outside"}}
    with pytest.raises(UserError, match="torchrun or SLURM had started: start it as then"):
        plan(Recorded(before.folder, "train", before.about, outside, {}), cache_dir=None)


@pytest.mark.slow
def test_a_mistake_is_one_message(clipkit: Command, changed: Change) -> None:
    done = clipkit("repeat", f"run={changed(overrides=['data=folder', 'data.root=gone'])}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "gone" in done.stderr
    assert "could not be repeated" in done.stderr
