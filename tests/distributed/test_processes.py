"""Several processes train one model: the same as one process, one run folder, and mistakes that are said once."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import Command

RECIPE = (
    "backbone=tiny",
    "backbone.image.name=test_vit",
    "data=synthetic",
    "data.num_images=160",
    "data.augmentation=affine_color",
    "approach.stages.towers.epochs=4",
    "approach.stages.towers.batch_size=32",
    "evaluators=[retrieval]",
    "report=false",
)
# What differs between one process and two is then the order of sums alone.
NO_DROPOUT = ("+backbone.text.config.hidden_dropout_prob=0", "+backbone.text.config.attention_probs_dropout_prob=0")
TWO = (*RECIPE, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.threads=1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def values(folder: Path, name: str) -> list[float]:
    table = pd.read_csv(folder / "metrics.csv")
    return table[table["name"] == name]["value"].tolist()


def assert_same(one: Path, other: Path) -> None:
    """To the bit."""
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()
    first, second = weights(one), weights(other)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for name in ("train/loss_step", "train/loss_epoch", "val/loss"):
        assert values(one, name) == values(other, name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The recipe by one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = Command(folder, cache)("train", *RECIPE, *NO_DROPOUT, "trainer=cpu", "trainer.threads=1", "name=alone")
    assert done.returncode == 0, done.stderr
    return folder / "outputs/train/alone"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The recipe by two processes."""
    folder = tmp_path_factory.mktemp("both")
    done = Command(folder, cache).together(2, *RECIPE, *NO_DROPOUT, "name=both")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "recall@1" in done[0].stdout
    assert done[1].stdout == done[1].stderr == ""  # process 0 speaks for all
    return folder / "outputs/train/both"


def test_two_processes_train_what_one_does(alone: Path, both: Path) -> None:
    assert len(values(both, "train/loss_step")) == len(values(alone, "train/loss_step")) == 16
    assert values(both, "train/loss_step") == pytest.approx(values(alone, "train/loss_step"), rel=1e-4)
    assert values(both, "val/loss") == pytest.approx(values(alone, "val/loss"), rel=1e-3)
    one, two = weights(alone), weights(both)
    moved = {name: value - two[name] for name, value in one.items() if value.is_floating_point()}
    assert max(float(difference.abs().max()) for difference in moved.values()) < 1e-3


def test_evaluation_by_two_processes_gives_the_numbers_of_one(clipkit: Command) -> None:
    asked = "evaluators=[classify,retrieval,zero_shot,linear_probe,knn,typographic]"
    done = clipkit.together(2, *RECIPE, "approach.stages.towers.epochs=1", asked, "name=two")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    folder = clipkit.folder / "outputs"
    data = [text for text in RECIPE if text.startswith("data")]
    alone = clipkit("evaluate", f"model={folder}/train/two", *data, asked, "name=one")
    assert alone.returncode == 0, alone.stderr
    two, one = (json.loads((folder / name / "metrics.json").read_text()) for name in ("train/two", "evaluate/one"))
    assert "test/knn/top1" in two
    of_test = {name: value for name, value in two.items() if not name.startswith("val/")}
    assert of_test == pytest.approx(one, abs=1e-6)


def test_each_process_draws_its_own_dropout(both: Path) -> None:
    states = torch.load(both / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["CheckpointWriter"]["rng"]
    assert len(states) == 2
    assert not torch.equal(states[0][0], states[1][0])


def test_one_folder_holds_the_run_of_both(both: Path) -> None:
    assert json.loads((both / "run.json").read_text())["processes"] == 2
    assert [path.name for path in both.parent.iterdir()] == ["both"]
    assert (both / "model/model.safetensors").is_file()
    rows = pd.read_csv(both / "metrics.csv")
    assert not rows.duplicated(["stage", "epoch", "step", "name"]).any()


def test_the_folder_of_the_clock_is_the_same_for_both(clipkit: Command) -> None:
    done = clipkit.together(2, *RECIPE, "approach.stages.towers.epochs=1", "evaluators=[]")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    assert len(list(clipkit.folder.glob("outputs/train/*/*"))) == 1


def test_a_run_of_two_is_not_continued_by_one(clipkit: Command, both: Path) -> None:
    run = json.loads((both / "run.json").read_text())
    (both / "run.json").write_text(json.dumps({**run, "status": "interrupted"}))
    try:
        done = clipkit.together(1, f"resume={both}")
    finally:
        (both / "run.json").write_text(json.dumps(run))
    assert done[0].returncode == 2
    assert "written by 2 processes training together, and now there is 1" in done[0].stderr


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (("data.limit=3", "approach.stages.towers.batch_size=2"), "cannot be shared by 2 processes"),
        (("backbone.image.name=test_efficientnet",), "trains BatchNorm"),
        (("seed=0,1", "-m"), "leave torchrun or srun out"),
    ],
)
def test_what_two_processes_cannot_do_is_said(clipkit: Command, choices: tuple[str, ...], said: str) -> None:
    done = clipkit.together(2, *RECIPE, *choices)
    assert [process.returncode for process in done] == [2, 2]
    assert said in done[0].stderr
    assert "Traceback" not in done[0].stderr


def test_how_many_processes_is_checked(clipkit: Command) -> None:
    for choices, said in (
        (("trainer=multi_node",), "there are none"),
        (("trainer=ddp", "trainer.accelerator=cpu"), "trainer.devices=2"),
        (("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=0"), "1 or more"),
    ):
        done = clipkit("train", *RECIPE, *choices)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The recipe, dropout and all, by two processes that were never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    done = Command(folder, cache)("train", *TWO, "name=straight")
    assert done.returncode == 0, done.stderr
    return folder / "outputs/train/straight"


def started(clipkit: Command, *arguments: str) -> tuple["subprocess.Popen[str]", Path]:
    """A run by two processes under the name `two`, once it has written a checkpoint."""
    process = clipkit.start("train", *TWO, "name=two", *arguments)
    folder = clipkit.folder / "outputs/train/two"
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints/last.ckpt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, folder


def processes_of(parent: int) -> list[int]:
    return [int(line) for line in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_both_and_the_same_command_goes_on_to_the_bit(
    clipkit: Command, straight: Path, number: int
) -> None:
    process, folder = started(clipkit, "resume=auto", "trainer.checkpoint_steps=1")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert output.count("Continue with") == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    done = clipkit("train", *TWO, "name=two", "resume=auto", "trainer.checkpoint_steps=1")
    assert done.returncode == 0, done.stderr
    assert_same(straight, folder)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_one_message_and_it_goes_on_to_the_bit(
    clipkit: Command, straight: Path
) -> None:
    process, folder = started(clipkit, "trainer.checkpoint_steps=1")
    children = processes_of(process.pid)
    assert len(children) == 2
    Path(f"/proc/{children[1]}").stat()
    subprocess.run(["kill", "-9", str(children[1])], check=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "process 1 of 2 was ended by signal 9" in output
    assert "Traceback" not in output
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert "signal 9" in json.loads((folder / "run.json").read_text())["error"]
    said = re.search(r"Continue with: python -m clipkit\.train (resume=\S+)", output)
    assert said is not None
    done = clipkit("train", said[1])
    assert done.returncode == 0, done.stderr
    assert_same(straight, folder)


@pytest.mark.slow
def test_every_job_of_a_multirun_has_its_own_processes_and_folder(clipkit: Command) -> None:
    done = clipkit("train", "-m", *TWO, "seed=0,1", "approach.stages.towers.epochs=1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    folders = sorted(clipkit.folder.glob("sweep/*/metrics.json"))
    assert [path.parent.name for path in folders] == ["0", "1"]
    runs = [json.loads((path.parent / "run.json").read_text()) for path in folders]
    assert [run["seed"] for run in runs] == [0, 1]
    assert [run["processes"] for run in runs] == [2, 2]
    assert folders[0].read_text() != folders[1].read_text()
    assert not (clipkit.folder / "outputs").exists()


@pytest.mark.slow
def test_a_mistake_in_one_job_of_a_multirun_leaves_the_others(clipkit: Command) -> None:
    sizes = "approach.stages.towers.batch_size=1,32"
    done = clipkit("train", "-m", *TWO, sizes, "approach.stages.towers.epochs=1", "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert "nothing to be compared with" in done.stdout + done.stderr
    assert json.loads((clipkit.folder / "sweep/0/run.json").read_text())["status"] == "failed"
    assert (clipkit.folder / "sweep/1/metrics.json").is_file()
