"""Multiruns: jobs beside each other are as jobs alone, failures and signals reach whom they concern."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from clipkit.data.decoding import available_cores
from clipkit.errors import UserError
from clipkit.features import FeatureStore
from clipkit.runs.grid_jobs import _own_gpu, share_machine
from clipkit.runs.grid_summary import Grid, read_jobs
from clipkit.runs.progress import console
from clipkit.runs.sweeps import Sweep
from conftest import TINY, Command

JOBLIB = "hydra/launcher=joblib"
SHORT = (*TINY, "debug=fast", "report=false")
FORK = multiprocessing.get_context("fork")


def about(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "run.json").read_text())
    return content


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with two GPUs, as far as nvidia-smi says, and what a command line leaves in its environment."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CLIPKIT_JOBS_AT_ONCE", "1")
    return tmp_path


def at_once(*overrides: str) -> int:
    *_, last = share_machine(["-m", JOBLIB, *overrides])
    assert last.startswith("hydra.launcher.n_jobs=")
    return int(last.partition("=")[2])


@pytest.mark.slow
def test_jobs_beside_each_other_end_as_they_do_one_after_the_other(clipkit: Command) -> None:
    line = ("train", "-m", *SHORT, "seed=5", "backbone.image.name=test_efficientnet,resnet1001")
    beside = clipkit(*line, "hydra.sweep.dir=beside", JOBLIB, "hydra.launcher.n_jobs=2")
    local = clipkit(*line, "hydra.sweep.dir=local")
    for done, folder in ((beside, clipkit.folder / "beside"), (local, clipkit.folder / "local")):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert (about(folder / "0")["status"], about(folder / "1")["status"]) == ("finished", "failed")
        assert "resnet1001" in str(about(folder / "1")["error"])
        for part in ("Runs of this multirun", "backbone.image.name=resnet1001", "1 of 2 runs are finished"):
            assert part in done.stdout
        assert "seed=5" not in done.stdout.partition("Runs of this multirun")[2]  # all have it
    numbers = [(clipkit.folder / where / "0/metrics.json").read_text() for where in ("beside", "local")]
    assert numbers[0] == numbers[1]
    assert "error: job 1" in beside.stderr
    assert "test · " not in beside.stdout  # what jobs say does not mix
    assert "stage towers" in (clipkit.folder / "beside/0/logs/output.log").read_text()


@pytest.mark.slow
def test_jobs_that_are_told_to_stop_save_and_the_rest_never_begins(clipkit: Command) -> None:
    sweep, epochs = clipkit.folder / "sweep", "approach.stages.towers.epochs=500"
    line = ("-m", *TINY, epochs, "seed=0,1", "hydra.sweep.dir=sweep", JOBLIB, "hydra.launcher.n_jobs=1")
    process = clipkit.start("train", *line)
    end = time.monotonic() + 240
    while not (sweep / "0/checkpoints/last.ckpt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert about(sweep / "0")["status"] == "interrupted"
    assert not (sweep / "1/run.json").exists()
    assert "hydra.sweep.dir=sweep resume=auto" in said
    assert "Traceback" not in said
    left = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if b"train" in _read(file)]
    assert not [line for line in left if str(sweep).encode() in line]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_a_stopped_grid_continues_to_the_numbers_of_one_that_never_stopped(clipkit: Command) -> None:
    line = ("-m", *TINY, "approach.stages.towers.epochs=40", "seed=0,1", JOBLIB, "hydra.launcher.n_jobs=2")
    process = clipkit.start("train", *line, "hydra.sweep.dir=stopped")
    saved, end = clipkit.folder / "stopped/0/checkpoints/last.ckpt", time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    for folder, more in (("stopped", ("resume=auto",)), ("whole", ())):
        done = clipkit("train", *line, f"hydra.sweep.dir={folder}", *more)
        assert done.returncode == 0, done.stdout + done.stderr
    for job in (0, 1):
        stopped, whole = ((clipkit.folder / f"{name}/{job}/metrics.json").read_text() for name in ("stopped", "whole"))
        assert stopped == whole


def test_a_launcher_that_is_not_installed_says_where_it_comes_from(clipkit: Command) -> None:
    done = clipkit("train", "-m", *SHORT, "seed=0,1", "hydra/launcher=ray")
    assert done.returncode == 2
    assert 'pip install "clipkit-train[joblib]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_no_more_jobs_at_a_time_than_there_are(machine: Path) -> None:
    assert at_once("trainer=cpu", "hydra.launcher.n_jobs=3", "seed=0,1", "approach=mlp,linear_probe") == 3
    assert at_once("trainer=cpu", "hydra.launcher.n_jobs=3", "seed=range(2)") == 2
    assert at_once("trainer=cpu") == 1
    cores = len(os.sched_getaffinity(0))
    assert at_once("trainer=cpu", "seed=range(1000)") == min(1000, cores)


def test_jobs_share_the_cores(machine: Path) -> None:
    alone = available_cores()
    at_once("trainer=cpu", "hydra.launcher.n_jobs=2", "seed=0,1")
    assert available_cores() == max(1, alone // 2)


def test_jobs_on_gpus_are_one_a_gpu_unless_asked_otherwise(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_once("seed=range(9)") == 2
    assert at_once("seed=range(9)", "hydra.launcher.n_jobs=5") == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert at_once("seed=range(9)") == 1


@pytest.mark.parametrize("asked", ["0", "many", "1.5"])
def test_a_number_of_jobs_that_is_none_is_refused(machine: Path, asked: str) -> None:
    with pytest.raises(UserError, match=f"n_jobs={asked}: a number of jobs"):
        at_once("seed=0,1", f"hydra.launcher.n_jobs={asked}")


def test_other_launchers_keep_their_command_line(machine: Path) -> None:
    assert share_machine(["-m", "seed=0,1"]) == ["-m", "seed=0,1"]
    assert os.environ["CLIPKIT_JOBS_AT_ONCE"] == "1"


def test_each_job_gets_a_gpu_that_no_other_has(machine: Path) -> None:
    trainer = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1}})
    with _own_gpu(trainer, machine) as first:
        others = [_gpu_of_another_process(trainer, machine)]
    assert first == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert others == [{"CUDA_VISIBLE_DEVICES": "GPU-b"}]
    assert _gpu_of_another_process(trainer, machine) == first  # it is free again
    for other in ({"accelerator": "cpu", "devices": 1}, {"accelerator": "auto", "devices": "auto"}):
        with _own_gpu(OmegaConf.create({"trainer": other}), machine) as given:
            assert given == {}


def _gpu_of_another_process(trainer: object, folder: Path) -> dict[str, str]:
    answer = FORK.SimpleQueue()

    def ask() -> None:
        with _own_gpu(trainer, folder) as given:  # type: ignore[arg-type]  # a configuration
            answer.put(given)

    process = FORK.Process(target=ask)
    process.start()
    process.join(30)
    found: dict[str, str] = answer.get()
    return found


def test_of_two_jobs_that_need_the_same_features_one_computes_them(tmp_path: Path) -> None:
    counted = tmp_path / "counted"

    def encode() -> Iterator[NDArray[np.float32]]:
        with counted.open("a") as file:
            file.write("x")
        time.sleep(0.5)
        yield np.ones((3, 2), np.float32)

    def need() -> None:
        assert FeatureStore(tmp_path / "features").get({"a": 1}, (3, 2), encode).sum() == 6

    both = [FORK.Process(target=need) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert counted.read_text() == "x"
    assert len(list((tmp_path / "features").iterdir())) == 1  # no lock is left


def test_a_job_that_dies_while_it_computes_features_lets_the_next_one_on(tmp_path: Path) -> None:
    def die() -> Iterator[NDArray[np.float32]]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield np.ones((3, 2), np.float32)

    process = FORK.Process(target=lambda: FeatureStore(tmp_path).get({"a": 1}, (3, 2), die))
    process.start()
    process.join(30)
    assert FeatureStore(tmp_path).get({"a": 1}, (3, 2), lambda: iter([np.ones((3, 2), np.float32)])).sum() == 6


def test_the_table_reads_whatever_lies_in_the_folder(tmp_path: Path) -> None:
    for name, content in (("10", '{"status": "finished", "overrides": ["seed=1"]}'), ("2", "half of {"), ("9", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "10/metrics.json").write_text('{"test/top1": 0.5}')
    jobs = read_jobs(tmp_path)
    assert [(job.name, job.status) for job in jobs] == [("2", "unreadable"), ("9", "unreadable"), ("10", "finished")]
    assert jobs[-1].metrics == {"test/top1": 0.5}


@pytest.mark.parametrize(("width", "columns"), [(40, 1), (60, 2), (120, 3)])
def test_the_table_shows_the_numbers_that_have_room_and_cuts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, columns: int
) -> None:
    monkeypatch.setattr(console, "_width", width)
    monkeypatch.setattr(console, "_height", 50)
    metrics = {f"test/{subset}/{name}": 0.5 for name in ("top1", "i2t_recall@1") for subset in ("seen", "unseen")}
    for number in range(2):
        folder = tmp_path / "jobs" / str(number)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"status": "finished", "overrides": [f"seed={number}"]}))
        (folder / "metrics.json").write_text(json.dumps(metrics))
    sweep = Sweep("train", [], [], {"seed": ["0", "1"]}, str(tmp_path / "jobs"))
    Grid(sweep).close()
    said = capsys.readouterr().out
    assert [line.count("0.500") for line in said.splitlines() if "seed=" in line] == [columns, columns]
    assert said.count("test/seen") + said.count("test/unseen") == columns
    assert "2 of 2 runs are finished" in said
