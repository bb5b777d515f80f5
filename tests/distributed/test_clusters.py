"""Processes that torchrun or SLURM start: who is who, what is refused, and whole runs.

torchrun and submitit's local executor are real here. SLURM is not at hand: `fake_slurm.py` stands in for its commands.
The long tests train the same model by two processes in different ways, and compare with `trainer=ddp`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_slurm
import psutil
import pytest
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.ranks import Place
from clipkit.runs.checkpoints import StopSignals
from clipkit.runs.endings import Interrupted
from clipkit.runs.launch import wanted
from clipkit.runs.meeting import found_place, meet
from conftest import ROOT, Command

DOC = ROOT / "docs" / "clusters.md"
MODEL = (
    "backbone=tiny", "backbone.image.name=test_vit", "data=synthetic", "data.num_images=160", "data.batch_size=16",
    "approach.stages.towers.epochs=3", "report=false", "evaluators=[retrieval]", "trainer.threads=1",
    "trainer.accelerator=cpu", "trainer.checkpoint_minutes=0",
)  # fmt: skip
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

BY_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1", "MASTER_ADDR": "gpu01", "MASTER_PORT": "29500",
}  # fmt: skip
IN_BATCH_SCRIPT = {
    "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[07-08]",
}  # fmt: skip
BY_SRUN = IN_BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
}  # fmt: skip


def trainer(option: str = "auto", **changes: Any) -> Any:
    """One of conf/trainer, as composed."""
    config = OmegaConf.load(ROOT / "conf" / "trainer" / "auto.yaml")
    if option != "auto":
        config.merge_with(OmegaConf.load(ROOT / "conf" / "trainer" / f"{option}.yaml"))
    return OmegaConf.merge(config, changes)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts variables into this process's environment, for one test."""

    def put(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    for name in {*BY_TORCHRUN, *BY_SRUN, "CLIPKIT_PARENT"}:
        monkeypatch.delenv(name, raising=False)
    return put


def test_a_process_alone_finds_itself_alone() -> None:
    assert found_place({}) == Place()


def test_torchrun_says_where_a_process_stands() -> None:
    assert found_place(BY_TORCHRUN) == Place(5, 8, 1, 4, 1, "gpu01", 29500)


def test_srun_says_where_a_task_stands() -> None:
    assert found_place(BY_SRUN) == Place(6, 8, 2, 4, 1, "gpu07", 15000 + 3456)


def test_all_tasks_of_a_job_find_the_same_meeting_place() -> None:
    places = [found_place(BY_SRUN | {"SLURM_PROCID": str(number)}) for number in range(8)]
    assert len({(place.address, place.port) for place in places}) == 1


def test_the_meeting_place_can_be_given() -> None:
    place = found_place(BY_SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4711"})
    assert (place.address, place.port) == ("10.0.0.1", 4711)


def test_a_batch_script_outside_srun_is_one_process() -> None:
    assert found_place(IN_BATCH_SCRIPT) == Place()


def test_a_step_smaller_than_its_job_counts_its_own_tasks() -> None:
    own = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu07"}
    assert found_place(BY_SRUN | own | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}).ranks == 1


def test_processes_that_clipkit_has_started_inside_a_slurm_task_are_clipkits() -> None:
    own = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    place = found_place(BY_SRUN | own | {"MASTER_PORT": "4000", "CLIPKIT_PARENT": "99"})
    assert place == Place(1, 2, 1, 2, 0, "127.0.0.1", 4000)


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("node-a1", "node-a1"),
        ("node-a[1-2]", "node-a1"),
        ("n[1,3]", "n1"),
        ("n[007,009-011]", "n007"),
        ("127.0.0.[1-2]", "127.0.0.1"),
        ("rack[1-2]n[03-04]", "rack1n03"),
        ("n[1-2]-ib", "n1-ib"),
        ("n[1-2]-ib,m3", "n1-ib"),
    ],
)
def test_the_first_machine_of_a_node_list(listed: str, first: str) -> None:
    assert found_place(BY_SRUN | {"SLURM_STEP_NODELIST": listed}).address == first


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_variable_that_torchrun_should_have_set_is_named(variable: str) -> None:
    with pytest.raises(UserError, match=variable):
        found_place({key: value for key, value in BY_TORCHRUN.items() if key != variable})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SLURM_STEP_NUM_TASKS": "7"}, "7 tasks on 2 machines"),
        ({"SLURM_PROCID": "first"}, "not complete.*first"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
    ],
)
def test_slurm_variables_that_contradict_each_other_are_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        found_place(BY_SRUN | wrong)


@pytest.mark.parametrize("around", [{}, IN_BATCH_SCRIPT])
def test_multi_node_needs_processes_that_were_started(environment: Any, around: dict[str, str]) -> None:
    environment(around)  # a batch script that forgets srun would train alone on one of its GPUs
    with pytest.raises(UserError, match="torchrun or srun"):
        wanted(trainer("multi_node"))


@pytest.mark.parametrize("around", [BY_TORCHRUN, BY_SRUN])
def test_multi_node_takes_the_processes_it_finds(environment: Any, around: dict[str, str]) -> None:
    environment(around)
    assert wanted(trainer("multi_node")) == 1


@pytest.mark.parametrize("around", [BY_TORCHRUN, BY_SRUN])
@pytest.mark.parametrize("option", ["auto", "cpu", "ddp"])
def test_processes_started_together_would_not_train_the_same_model_apart(
    environment: Any, around: dict[str, str], option: str
) -> None:
    environment(around)
    with pytest.raises(UserError, match="8 processes were started together: add trainer=multi_node"):
        wanted(trainer(option))


def test_ddp_in_a_batch_script_starts_its_own_processes(environment: Any) -> None:
    environment(IN_BATCH_SCRIPT)
    assert wanted(trainer("ddp", accelerator="cpu", devices=2)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accelerator": "cpu"}, "trainer.devices=2"),
        ({"accelerator": "cpu", "devices": 0}, "trainer.devices=0"),
        ({"accelerator": "cpu", "devices": "2,3"}, "trainer.devices=2,3"),
        ({"accelerator": "gpu", "devices": 999}, "this machine has"),
    ],
)
def test_devices_that_there_are_not_are_refused(environment: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        wanted(trainer("ddp", **changes))


def test_a_task_that_sees_no_gpu_of_its_own_is_told_what_to_ask_slurm_for(environment: Any) -> None:
    environment(BY_SRUN | {"SLURM_LOCALID": "99"})
    with pytest.raises(UserError, match=r"number 99 on its machine.*--gpus-per-node"):
        meet(trainer("multi_node", accelerator="gpu"))


def test_one_warning_that_arrives_twice_is_one(tmp_path: Path) -> None:
    """SLURM signals every process of a step, and the process that watches the others hands it on once more."""
    signals = StopSignals(tmp_path)
    with signals.watching():
        signals.wait_for_step = True
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGUSR1
        time.sleep(1.1)
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.status == 128 + signal.SIGUSR1


# Whole runs.


def metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def about(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "outputs").rglob("run.json"))


def script_of_the_documentation(folder: Path) -> Path:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", DOC.read_text(), re.DOTALL)
    path = folder / "train.sh"
    path.write_text(script)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, float]:
    """The metrics of two processes that this command starts by itself, without a stop."""
    clipkit = Command(tmp_path_factory.mktemp("ddp"), cache)
    done = clipkit("train", *MODEL, "trainer=ddp", "trainer.devices=2", "name=ddp")
    assert done.returncode == 0, done.stdout + done.stderr
    return metrics(clipkit.folder / "outputs/train/ddp")


@pytest.fixture
def slurm(clipkit: Command, tmp_path: Path) -> Command:
    """The command in an environment where SLURM's commands are on PATH."""
    fake_slurm.install(tmp_path / "bin")
    clipkit.warm = False
    path = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    clipkit.environment |= {"PATH": os.pathsep.join(path), "FAKE_SLURM": str(tmp_path / "jobs")}
    return clipkit


def finished_job(slurm: Command, number: int, *, timeout: float = 300) -> dict[str, Any]:
    """A job's record once it has ended."""
    path, end = slurm.folder / "jobs" / f"{number}.json", time.monotonic() + timeout
    while time.monotonic() < end:
        job: dict[str, Any] = json.loads(path.read_text())
        if job["state"] in fake_slurm.ENDED:
            return job
        time.sleep(0.2)
    raise AssertionError(path.read_text())


def torchrun(clipkit: Command, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, "-m", "clipkit.train", *arguments],
        cwd=clipkit.folder,
        env=clipkit.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_batch_script_may_train_by_one_process_whatever_it_asked_slurm_for(clipkit: Command) -> None:
    clipkit.warm = False  # no srun: `--ntasks=8` is no reason to refuse, nor to wait for seven others
    done = clipkit("train", *MODEL, "trainer=cpu", "approach.stages.towers.epochs=1", "name=alone", **IN_BATCH_SCRIPT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert about(clipkit.folder / "outputs/train/alone")["processes"] == 1


@pytest.mark.slow
def test_torchrun_trains_as_ddp_does_in_one_folder_that_needs_no_name(
    clipkit: Command, expected: dict[str, float]
) -> None:
    process = torchrun(clipkit, *MODEL, "trainer=multi_node")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    (folder,) = runs(clipkit.folder)
    assert metrics(folder) == expected
    assert about(folder)["processes"] == 2
    assert said.count("stage towers: done") == 1  # process 0 speaks for both


@pytest.mark.slow
def test_torchrun_without_multi_node_is_refused_with_one_message(clipkit: Command) -> None:
    process = torchrun(clipkit, *MODEL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("error: 2 processes were started together: add trainer=multi_node") == 1
    assert said.count("error: ") == 1
    assert not (clipkit.folder / "outputs").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_under_torchrun(clipkit: Command) -> None:
    process = torchrun(clipkit, *MODEL, "trainer=multi_node", "name=killed", "approach.stages.towers.epochs=500")
    checkpoint = clipkit.folder / "outputs/train/killed/checkpoints/last.ckpt"
    end = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children()
    second = next(one for one in workers if one.environ().get("RANK") == "1")
    second.kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0, said
    assert not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert about(clipkit.folder / "outputs/train/killed")["status"] in ("failed", "interrupted")


@pytest.mark.slow
def test_the_documented_script_goes_on_after_its_time_is_up(slurm: Command, expected: dict[str, float]) -> None:
    """Two tasks on two "nodes": warned by SIGUSR1, saved, put back by `scontrol requeue`, and continued."""
    script = script_of_the_documentation(slurm.folder)
    slurm.environment["FAKE_SLURM_WARN"] = "outputs/train/*/checkpoints/last.ckpt"
    line = ["sbatch", "--nodes=2", "--ntasks-per-node=1", script.name, *MODEL]
    submitted = subprocess.run(line, cwd=slurm.folder, env=slurm.environment, capture_output=True, text=True)
    assert submitted.stdout == "Submitted batch job 1000\n", submitted.stderr
    job = finished_job(slurm, 1000)
    said = (slurm.folder / "my_run-1000.log").read_text()
    assert (job["state"], job["restarts"]) == ("COMPLETED", 1), said
    assert "resumed: stage towers after optimiser step" in said
    assert said.count("stopped in stage towers") == 1
    (folder,) = runs(slurm.folder)
    assert folder == slurm.folder / "outputs/train/my_run"
    assert metrics(folder) == pytest.approx(expected, rel=1e-5)  # each node has all cores
    assert about(folder)["processes"] == 2


@pytest.mark.slow
def test_the_documented_script_is_not_put_back_after_a_mistake(slurm: Command) -> None:
    script = script_of_the_documentation(slurm.folder)
    line = ["sbatch", "--nodes=2", "--ntasks-per-node=1", script.name, *MODEL, "data.batch_size=none"]
    subprocess.run(line, cwd=slurm.folder, env=slurm.environment, check=True, capture_output=True)
    job = finished_job(slurm, 1000)
    said = (slurm.folder / "my_run-1000.log").read_text()
    assert (job["state"], job["restarts"], job["status"]) == ("FAILED", 0, 2), said
    assert said.count("error: data.batch_size=none") == 1, said


@pytest.mark.slow
def test_a_sweep_through_submitit_runs_each_job_by_two_processes_and_continues_it(
    slurm: Command, expected: dict[str, float]
) -> None:
    """Both jobs are warned by SIGUSR2 once they have saved; submitit puts them back, `resume=auto` goes on."""
    launcher = ("hydra/launcher=submitit_slurm", "gpus_per_node=2", "cpus_per_task=4", "partition=long")
    done = slurm(
        "train", "-m", *MODEL, "seed=0,1", "resume=auto", "trainer=ddp", "trainer.devices=2", launcher[0],
        *(f"hydra.launcher.{choice}" for choice in launcher[1:]), "hydra.launcher.timeout_min=90",
        FAKE_SLURM_WARN="outputs/train/multirun/*/%a/checkpoints/last.ckpt",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    head = [line for line in (slurm.folder / "jobs/1000.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    for line in (
        "--job-name=clipkit-train", "--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=2", "--cpus-per-task=4",
        "--partition=long", "--time=90", "--signal=USR2@120", "--array=0-1%2",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in head
    first, second = runs(slurm.folder)
    assert (first.name, second.name) == ("0", "1")
    assert metrics(first) == expected
    assert metrics(second) != expected
    for number, folder in enumerate((first, second)):
        assert about(folder)["processes"] == 2
        assert about(folder)["command"].startswith("python -m clipkit.train ")
        assert about(folder)["seed"] == number
        job = finished_job(slurm, 1000 + number)
        assert (job["state"], job["restarts"]) == ("COMPLETED", 1)


@pytest.mark.slow
def test_tasks_of_a_submitit_job_train_together(slurm: Command, expected: dict[str, float]) -> None:
    done = slurm(
        "train", "-m", *MODEL, "trainer=multi_node", "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2",
        "hydra.launcher.tasks_per_node=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = runs(slurm.folder)
    assert metrics(folder) == pytest.approx(expected, rel=1e-5)  # each task has all cores
    assert about(folder)["processes"] == 2


@pytest.mark.slow
def test_a_failed_job_of_a_sweep_through_submitit_is_told_while_the_others_run(slurm: Command) -> None:
    sweep = ("trainer=ddp", "trainer.devices=0,1", "approach.stages.towers.epochs=1")
    done = slurm("train", "-m", *MODEL, *sweep, "hydra/launcher=submitit_slurm")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "jobs of this multirun failed" in done.stderr
    assert "Traceback" not in done.stderr
    first, second = runs(slurm.folder)
    assert (about(first)["status"], about(second)["status"]) == ("failed", "finished")
    assert "trainer.devices=0" in about(first)["error"]


@pytest.mark.slow
def test_submitit_also_runs_a_sweep_on_this_machine(clipkit: Command, expected: dict[str, float]) -> None:
    sweep = ("trainer=ddp", "trainer.devices=2", "hydra/launcher=submitit_local")
    done = clipkit("train", "-m", *MODEL, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = runs(clipkit.folder)
    assert metrics(folder) == expected
