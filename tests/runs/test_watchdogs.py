"""A run whose numbers stop being finite ends in good order; one that learns nothing says so; others say nothing."""

import json
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clipkit.approaches.base import Stage
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.errors import UserError
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower
from clipkit.runs.watchdogs import Watchdog
from conftest import TINY, Command

RECIPE = (*TINY, "approach.stages.towers.batch_size=16", "report=false", "evaluators=[]")


def finite(content: Any) -> bool:
    """Whether all tensors in nested dicts and lists are."""
    if isinstance(content, Tensor):
        return bool(torch.isfinite(content).all())
    if isinstance(content, dict | list | tuple):
        return all(finite(part) for part in (content.values() if isinstance(content, dict) else content))
    return True


def contrastive(folder: Path, *, batch_size: int = 16, kind: type[Contrastive] = Contrastive, **options: Any) -> Any:
    """An approach that trains projections on frozen random towers, on 113 pictures; and its data."""
    torch.manual_seed(0)
    text = {"model_type": "bert", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0}
    encoder = DualEncoder(
        TimmImageTower("test_efficientnet", image_size=32),
        TransformersTextTower(config=text),
        projection=partial(LinearProjection, embed_dim=32),
    )
    data = PairData(synthetic(160, image_size=32), preprocess=encoder.preprocess, tokenize=encoder.tokenize)
    data.find_broken()
    optimizer = Optimizer(torch.optim.SGD, lr=0.1, weight_decay=0.0)
    train = Trained(image_groups=0, text_groups=0)
    stage = Stage(epochs=1, train=train, batch_size=batch_size, optimizer=optimizer, scheduler=Constant())
    approach = kind(encoder, stages={"only": stage}, **options)
    features = FrozenFeatures(encoder, data, FeatureStore(folder / "features"))
    approach.prepare(features)
    approach.enter("only", features)
    return approach, data


def fit(folder: Path, approach: Contrastive, data: PairData, *, epochs: int = 1, **options: Any) -> Any:
    """Train; returns the trainer, and the alarms."""
    alarms: list[str] = []
    watchdog = Watchdog(folder, "only", on_alarm=alarms.append)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[watchdog],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(approach, datamodule=data)
    return trainer, alarms


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint_before_it(clipkit: Command) -> None:
    diverging = ("optimizer.lr=1e30", "trainer.checkpoint_minutes=0", "scheduler.warmup=0")
    done = clipkit("train", *RECIPE, *diverging, "name=nan")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "stage towers, epoch 1, optimiser step 2: the training loss is nan" in done.stderr
    assert "optimizer.lr" in done.stderr
    folder = clipkit.folder / "outputs/train/nan"
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    first, second = json.loads((folder / "bad_batch.json").read_text())["batches"]
    assert math.isfinite(float(first["loss"]))
    assert not math.isfinite(float(second["loss"]))
    for batch in (first, second):
        assert 14 <= len(batch["pictures"]) <= 16
        for picture in batch["pictures"]:  # synthetic names and captions tell the same thing
            assert all(picture["image"].rpartition(" ")[0] in caption for caption in picture["captions"])
            assert len(picture["captions"]) == len(picture["caption_ids"]) == 1
    checkpoint = folder / "checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["global_step"] == 1
    assert finite(content)
    before = checkpoint.read_bytes()
    again = clipkit("train", "resume=outputs/train/nan")
    assert again.returncode == 2
    assert "resumed: stage towers after optimiser step 1" in again.stdout
    assert "optimiser step 2: the training loss is nan" in again.stderr
    assert checkpoint.read_bytes() == before


@pytest.mark.slow
def test_two_processes_stop_together_and_list_the_pictures_of_both(clipkit: Command) -> None:
    diverging = ("backbone.image.name=test_vit", "optimizer.lr=1e30", "scheduler.warmup=0")
    done = clipkit.together(2, *RECIPE, *diverging, "name=nan")
    assert [process.returncode for process in done] == [2, 2], done[0].stdout + done[0].stderr
    assert "the training loss is nan" in done[0].stderr
    folder = clipkit.folder / "outputs/train/nan"
    for batch in json.loads((folder / "bad_batch.json").read_text())["batches"]:
        assert 14 <= len({picture["image_id"] for picture in batch["pictures"]}) <= 16


def test_a_run_that_collapses_is_told_so_once(clipkit: Command) -> None:
    collapsing = ("optimizer.lr=1", "scheduler=constant", "scheduler.warmup=0", "approach.stages.towers.epochs=14")
    done = clipkit("train", *TINY, *collapsing, "approach.stages.towers.batch_size=16", "evaluators=[]",
                   "name=collapse")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/collapse"
    (alarm,) = json.loads((folder / "run.json").read_text())["alarms"]
    assert alarm.startswith("stage towers, epoch ")
    assert done.stdout.count("no better than that of a guess") == 1
    assert "no better than that of a guess" in (folder / "report.html").read_text()


def test_a_run_that_learns_is_told_nothing(tiny_run: Path) -> None:
    assert "alarms" not in json.loads((tiny_run / "run.json").read_text())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_small_batches_that_learn_raise_no_alarm(tmp_path: Path, batch_size: int) -> None:
    approach, data = contrastive(tmp_path, batch_size=batch_size, image_contrast=0.0)
    _, alarms = fit(tmp_path, approach, data, epochs=max(1, batch_size))
    assert alarms == []


class Constantly(nn.Module):
    """A projection that gives everything the same embedding."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, features: Tensor) -> Tensor:
        embedded: Tensor = self.projection(features)
        return embedded * 0 + 1


@pytest.mark.parametrize("text_bank", [False, "auto"])
@pytest.mark.parametrize("targets", ["hard", "soft", "multi_positive"])
def test_chance_is_the_loss_of_a_model_that_says_the_same_of_everything(
    tmp_path: Path, targets: str, text_bank: bool
) -> None:
    approach, data = contrastive(tmp_path, targets=targets, text_bank=text_bank)
    encoder = approach.encoder
    encoder.image_projection = Constantly(encoder.image_projection)
    encoder.text_projection = Constantly(encoder.text_projection)
    _, alarms = fit(tmp_path, approach, data, epochs=10)
    loss, chance = approach.against_chance
    assert loss.item() == pytest.approx(chance, rel=1e-6)
    assert len(alarms) == 1  # after 70 of 80 batches


class SpoiltGradient(Contrastive):
    """The loss is finite at every step, the gradient at the last one is not: the root of 0 has an infinite slope."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx + 1 < self.trainer.num_training_batches:
            return loss
        weight = next(self.encoder.image_projection.parameters())
        return loss + (weight * 0).sqrt().sum()


@pytest.mark.parametrize("validates", [True, False])
def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path: Path, validates: bool) -> None:
    approach, data = contrastive(tmp_path, kind=SpoiltGradient)
    place = tmp_path / "last.ckpt"
    if validates:
        with pytest.raises(UserError, match="step has made weights"):
            fit(tmp_path, approach, data)
    else:
        trainer, _ = fit(tmp_path, approach, data, limit_val_batches=0)
        with pytest.raises(UserError, match="step has made weights"):
            trainer.save_checkpoint(place)
    assert not place.exists()
    (batch,) = json.loads((tmp_path / "bad_batch.json").read_text())["batches"]
    assert batch["step"] == 8  # the batches of the epoch
    assert len(batch["pictures"]) >= 14


def test_infinite_memory_of_the_optimizer_reaches_no_checkpoint(tmp_path: Path) -> None:
    approach, data = contrastive(tmp_path)
    trainer, _ = fit(tmp_path, approach, data, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    weight = next(approach.encoder.image_projection.parameters())
    trainer.optimizers[0].state[weight]["momentum_buffer"] = torch.full_like(weight, torch.inf)
    with pytest.raises(UserError, match="memory of gradients"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert (tmp_path / "good.ckpt").is_file()
    assert not (tmp_path / "bad.ckpt").exists()
