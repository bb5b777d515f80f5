"""Averaged weights are the formula, are validated, saved and handed on; training goes on with its own."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from clipkit.approaches.averaging import AveragedWeights
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
from clipkit.models.projection import LinearMLPProjection
from clipkit.models.text_transformer import CausalTextTower

DECAY = 0.6
ALL = Trained(image_groups="all", text_groups="all")


class Watched(Contrastive):
    """Writes down the weights after each optimiser step, and those that are validated."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.seen.append(trained_weights(self))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.validated.append(trained_weights(self))

    def begin_watching(self) -> None:
        self.seen: list[dict[str, Tensor]] = [trained_weights(self)]
        self.validated: list[dict[str, Tensor]] = []


def trained_weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def approach_on(folder: Path, train: Trained, *, lr: float = 1e-2, **options: Any) -> tuple[Watched, PairData]:
    """On 29 training pictures, ten a batch at most."""
    torch.manual_seed(0)
    text = CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40)
    image = TimmImageTower("test_efficientnet", image_size=32)
    encoder = DualEncoder(image, text, projection=partial(LinearMLPProjection, embed_dim=16, dropout=0.2))
    data = PairData(synthetic(40, image_size=32), preprocess=encoder.preprocess, tokenize=encoder.tokenize)
    data.find_broken()
    optimizer = Optimizer(partial(torch.optim.AdamW, fused=True), lr=lr, weight_decay=0.1)
    stage = Stage(epochs=2, train=train, batch_size=10, optimizer=optimizer, scheduler=Constant())
    approach = Watched(encoder, stages={"only": stage}, **options)
    features = FrozenFeatures(encoder, data, FeatureStore(folder))
    approach.prepare(features)
    approach.enter("only", features)
    return approach, data


def fit(approach: Watched, data: PairData, *, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    approach.begin_watching()
    torch.manual_seed(1)
    trainer.fit(approach, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def averages(seen: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The average after each step, in float64, from the weights at the start and after each step."""
    average = {name: value.double() for name, value in seen[0].items()}
    found = [average]
    for step, weights in enumerate(seen[1:], start=1):
        keep = min(DECAY, step / (9 + step))
        average = {name: keep * average[name] + (1 - keep) * value.double() for name, value in weights.items()}
        found.append(average)
    return found


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any((value - other[name]).abs().max() > 1e-3 for name, value in one.items())


@pytest.mark.parametrize("train", [ALL, Trained(image_groups=1), Trained()], ids=str)
def test_validation_and_the_stages_end_have_the_average_of_what_is_trained(tmp_path: Path, train: Trained) -> None:
    approach, data = approach_on(tmp_path, train, ema=DECAY)
    fit(approach, data)
    expected = averages(approach.seen)
    assert len(expected) == 7  # two epochs of three batches
    assert "encoder.logit_scale" in expected[0]
    assert_close(approach.validated[0], expected[3])
    assert_close(approach.validated[1], expected[6])
    assert_close(trained_weights(approach), expected[6])
    assert differ(expected[6], approach.seen[-1])


def test_training_is_what_it_is_without_an_average(tmp_path: Path) -> None:
    seen = []
    for ema in (None, DECAY):
        approach, data = approach_on(tmp_path, ALL, ema=ema)
        fit(approach, data)
        seen.append(approach.seen)
    for plain, averaged in zip(*seen, strict=True):
        assert all(torch.equal(averaged[name], value) for name, value in plain.items())


def test_batches_that_are_accumulated_make_one_step_of_the_average(tmp_path: Path) -> None:
    approach, data = approach_on(tmp_path, ALL, ema=DECAY)
    trainer = fit(approach, data, accumulate_grad_batches=3, gradient_clip_val=0.01)
    assert trainer.global_step == 2
    assert_close(trained_weights(approach), averages(approach.seen)[2])


class Saves(pl.Callback):
    """A checkpoint right after one step in the midst of an epoch, as `CheckpointWriter` makes them."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            self.random = torch.get_rng_state()


class Restores(pl.Callback):
    def __init__(self, random: Tensor) -> None:
        self.random = random

    def on_train_start(self, *_: Any) -> None:
        torch.set_rng_state(self.random)


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_average_is_the_one_that_was_never_stopped_to_the_bit(tmp_path: Path, step: int) -> None:
    approach, data = approach_on(tmp_path, ALL, ema=DECAY, lr=0.5)  # the temperature meets its limit
    saves = Saves(tmp_path / "middle.ckpt", step)
    fit(approach, data, callbacks=[saves])
    content = torch.load(saves.file, weights_only=True)
    assert_close({n: content["state_dict"][n] for n in approach.seen[0]}, averages(approach.seen)[step])
    assert all(torch.equal(content["training_weights"][n], value) for n, value in approach.seen[step].items())
    resumed, data = approach_on(tmp_path, ALL, ema=DECAY, lr=0.5)
    fit(resumed, data, callbacks=[Restores(saves.random)], ckpt_path=saves.file)
    assert len(resumed.seen) == 7 - step
    for mine, theirs in zip(resumed.seen[1:], approach.seen[step + 1 :], strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    final, wanted = resumed.state_dict(), approach.state_dict()
    assert all(torch.equal(final[name], value) for name, value in wanted.items())
    assert all(torch.equal(resumed.validated[-1][n], v) for n, v in approach.validated[-1].items())


def test_a_checkpoint_of_the_last_step_hands_on_the_average_too(tmp_path: Path) -> None:
    again, data = approach_on(tmp_path, ALL, ema=DECAY)
    fit(again, data, callbacks=[AtEnd(tmp_path / "end.ckpt")])
    resumed, data = approach_on(tmp_path, ALL, ema=DECAY)
    fit(resumed, data, ckpt_path=tmp_path / "end.ckpt")
    assert resumed.seen[1:] == []
    wanted = again.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


class AtEnd(pl.Callback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.file)


def test_statistics_are_those_of_the_training(tmp_path: Path) -> None:
    buffers = []
    for ema in (None, DECAY):
        approach, data = approach_on(tmp_path, ALL, ema=ema)
        fit(approach, data)
        buffers.append({name: value for name, value in approach.named_buffers() if "running" in name})
    assert buffers[0]
    assert all(torch.equal(buffers[1][name], value) for name, value in buffers[0].items())


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(UserError, match="ema"):
        AveragedWeights(decay)
