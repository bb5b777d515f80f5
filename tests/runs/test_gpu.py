"""What runs on a processor runs on a GPU too, and gives what it gives there. Run: make test-gpu"""

import json
import math
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.losses import contrastive_loss
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower
from clipkit.runs.metrics_file import read_metrics
from conftest import ROOT, Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
SHORT = (
    "backbone=tiny",
    "data=synthetic",
    "data.num_images=160",
    "approach.stages.towers.batch_size=16",
    "trainer=gpu",
    "trainer.precision=bf16-mixed",
    "report=false",
    "evaluators=[retrieval]",
)


def losses(folder: Path) -> list[float]:
    table = read_metrics(folder / "metrics.csv")
    return [float(value) for value in table[table["name"] == "train/loss_step"]["value"]]


def test_the_default_job_runs_on_a_gpu_in_bf16(clipkit: Command) -> None:
    done = clipkit("train", "trainer=gpu", "trainer.precision=bf16-mixed", "name=gpu")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/gpu"
    assert json.loads((folder / "metrics.json").read_text())["test/seen/i2t_recall@1"] > 0.45
    assert json.loads((folder / "run.json").read_text())["hardware"]["gpus"]


def test_a_short_training_in_bf16_learns_and_measures_itself(clipkit: Command) -> None:
    done = clipkit("train", *SHORT, "approach.stages.towers.epochs=20", "name=short")
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/short"
    steps = losses(folder)
    assert sum(steps[-8:]) < 0.7 * sum(steps[:8])
    measured = json.loads((folder / "run.json").read_text())["performance"]["towers"]
    assert measured["peak_gpu_memory_mb"] > 1
    assert measured["tflops_per_s"] > 0
    assert 0 < measured.get("mfu", 0.5) < 1  # where the card's peak is known
    assert len(measured["by_epoch"]["tflops_per_s"]) == 20


def test_a_stopped_run_continues_on_the_gpu(clipkit: Command) -> None:
    process = clipkit.start("train", *SHORT, "approach.stages.towers.epochs=40", "name=stopped")
    folder = clipkit.folder / "outputs/train/stopped"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "checkpoints/last.ckpt").is_file():
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    before = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    done = clipkit("train", "resume=outputs/train/stopped")
    assert done.returncode == 0, done.stderr
    assert f"after optimiser step {before:,}" in done.stdout
    after = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert before < after == len(losses(folder))
    assert all(math.isfinite(value) for value in losses(folder))


def test_a_loss_that_is_not_finite_reaches_no_checkpoint(clipkit: Command) -> None:
    """On a GPU the loss is read every ten steps, and before each checkpoint."""
    done = clipkit("train", *SHORT, "optimizer.lr=1e30", "scheduler.warmup=0", "trainer.checkpoint_steps=1", "name=nan")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the training loss is" in done.stderr
    folder = clipkit.folder / "outputs/train/nan"
    assert len(json.loads((folder / "bad_batch.json").read_text())["batches"]) == 2
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_the_loss_in_tiles_is_the_dense_one() -> None:
    torch.manual_seed(0)
    rows = [normalize(torch.randn(1500, 64, device=DEVICE), dim=1) for _ in range(2)]

    def gradients(chunk_size: int | None) -> list[Tensor]:
        image, text = (x.clone().requires_grad_() for x in rows)
        scale = torch.tensor(30.0, device=DEVICE, requires_grad=True)
        loss = contrastive_loss(image, text, logit_scale=scale, chunk_size=chunk_size)
        return [loss.detach(), *torch.autograd.grad(loss, (image, text, scale))]

    for dense, tiled in zip(gradients(None), gradients(256), strict=True):
        torch.testing.assert_close(tiled, dense, rtol=1e-4, atol=1e-6)


def test_stored_features_are_those_of_the_processor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {"model_type": "bert", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0}
    encoder = DualEncoder(
        TimmImageTower("test_vit", image_size=160),
        TransformersTextTower(config=config),
        projection=partial(LinearProjection, embed_dim=32),
    ).eval()
    data = PairData(synthetic(40, image_size=160), preprocess=encoder.preprocess, tokenize=encoder.tokenize)
    data.find_broken()
    found = []
    for device in ("cpu", DEVICE):
        features = FrozenFeatures(encoder.to(device), data, FeatureStore(tmp_path / str(device)))
        found.append([torch.tensor(features.image("train")[:]), torch.tensor(features.text()[:])])
    for processor, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, processor, rtol=1e-2, atol=1e-2)  # convolutions may run in TensorFloat-32


def test_the_benchmark_runs() -> None:
    line = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--steps", "5"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "| 256 | chunked |" in done.stdout
