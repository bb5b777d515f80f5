"""The same job on a GPU, in bf16."""

import json

import pytest

from conftest import Command


@pytest.mark.gpu
def test_the_default_job_runs_on_a_gpu_in_bf16(clipkit: Command) -> None:
    done = clipkit("train", "trainer=gpu", "trainer.precision=bf16-mixed", "name=gpu")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/gpu"
    assert json.loads((folder / "metrics.json").read_text())["test/seen/i2t_recall@1"] > 0.45
    assert json.loads((folder / "run.json").read_text())["hardware"]["gpus"]
