"""CLIP-LoRA as a training: its loss, its length, what a checkpoint holds, and what is left for use."""

from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.approaches.base import Stage
from clipkit.approaches.lora import Lora
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.errors import UserError
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.image import TimmImageTower
from clipkit.models.lora import EVERYWHERE
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower
from clipkit.runs.checkpoints import CheckpointWriter, StopSignals

TEMPLATES = ("a drawing of a {}", "the {}")
SILENT: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def aligned_encoder(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    text = CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40)
    image = TimmImageTower("test_vit", image_size=32, model_args={"patch_size": 8})
    return DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=16), **{"aligned": True, **options})


def stage(lr: float, **options: Any) -> Stage:
    optimizer = Optimizer(torch.optim.AdamW, lr=lr)
    return Stage(
        **{"epochs": 1, "train": EVERYWHERE, "batch_size": 16, **options}, optimizer=optimizer, scheduler=Constant()
    )


def approach_on(
    folder: Path, *, lr: float = 0.0, stage_options: dict[str, Any] | None = None, **options: Any
) -> tuple[Lora, FrozenFeatures]:
    """At the start of its only stage, on 42 training pictures of six classes."""
    encoder = aligned_encoder()
    how: dict[str, Any] = {"preprocess": encoder.preprocess, "tokenize": encoder.tokenize, "templates": TEMPLATES}
    data = PairData(synthetic(60, image_size=32), **how)
    data.find_broken()
    options = {"iterations_per_shot": None, **options}
    approach = Lora(encoder, stages={"lora": stage(lr, **stage_options or {})}, **options)
    features = FrozenFeatures(encoder, data, FeatureStore(folder))
    approach.prepare(features)
    approach.enter("lora", features)
    return approach, features


def fit(approach: Lora, data: PairData, **options: Any) -> dict[str, float]:
    """What was logged last."""
    trainer = pl.Trainer(max_epochs=approach.stage.epochs, **SILENT, **options)
    trainer.fit(approach, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@torch.no_grad()
def zero_shot_loss(encoder: DualEncoder, data: PairData, split: str, templates: tuple[str, ...]) -> tuple[float, float]:
    """Cross-entropy and accuracy of the class names as a classifier, in float64."""
    encoder.eval()
    records = data.split(split)
    tokens = [[template.replace("{}", name) for template in templates] for name in records.class_names]
    texts = torch.stack([encoder.encode_text(encoder.tokenize(each)).double().mean(0) for each in tokens])
    images = encoder.encode_image(data.pixels(records.image_ids)).double()
    logits = encoder.logit_scale.double().exp() * images @ (texts / texts.norm(dim=1, keepdim=True)).T
    labels = torch.from_numpy(records.labels)
    return cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("sentences", [1, None])
def test_training_begins_as_the_zero_shot_classifier_of_the_class_names(tmp_path: Path, sentences: int | None) -> None:
    """Without a step every logged number is the published loss, logit_scale · cos over the classes, of the start."""
    approach, features = approach_on(tmp_path, sentences=sentences)
    logged = fit(approach, features.data)
    templates = TEMPLATES[:sentences]
    train, _ = zero_shot_loss(aligned_encoder(), features.data, "train", templates)
    val, top1 = zero_shot_loss(aligned_encoder(), features.data, "val", templates)
    assert logged["train/loss_epoch"] == pytest.approx(train, abs=1e-5)
    assert (logged["val/loss"], logged["val/top1"]) == pytest.approx((val, top1), abs=1e-5)
    assert 0 <= logged["val/f1_weighted"] <= 1


def test_both_towers_learn_and_the_model_that_is_left_answers_as_validated(tmp_path: Path) -> None:
    approach, features = approach_on(tmp_path, lr=1e-2, stage_options={"epochs": 8})
    logged, data = fit(approach, features.data), features.data
    approach.finish(features)
    model, start = approach.model(data.templates), aligned_encoder()
    before, _ = zero_shot_loss(start, data, "train", TEMPLATES[:1])
    after, _ = zero_shot_loss(model.encoder, data, "train", TEMPLATES[:1])
    assert after < before - 0.1
    val = data.split("val")
    logits = model.classifier(model.encode_image(data.pixels(val.image_ids)))  # type: ignore[misc]
    assert cross_entropy(logits, torch.from_numpy(val.labels)).item() == pytest.approx(logged["val/loss"], abs=1e-5)
    changed = {n for n, v in start.state_dict().items() if not torch.equal(v, model.encoder.state_dict()[n])}
    assert {name.split(".")[0] for name in changed} == {"image", "text"}
    assert all(name.endswith("qkv.weight") for name in changed)
    assert model.encoder.state_dict().keys() == start.state_dict().keys()


def test_chunks_learn_what_the_whole_batch_learns(tmp_path: Path) -> None:
    learned = []
    for chunk_size in (None, 5):
        approach, features = approach_on(tmp_path, lr=1e-3, dropout=0.0, stage_options={"chunk_size": chunk_size})
        fit(approach, features.data)
        learned.append({n: p.detach().clone() for n, p in approach.named_parameters() if p.requires_grad})
    for name, value in learned[0].items():
        assert torch.allclose(learned[1][name], value, atol=1e-4), name


def test_a_checkpoint_holds_the_updates_and_no_tower(tmp_path: Path) -> None:
    approach, features = approach_on(tmp_path, lr=1e-2)
    trainer = pl.Trainer(max_epochs=1, **SILENT)
    trainer.fit(approach, datamodule=features.data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state: dict[str, Tensor] = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = {name for name, parameter in approach.named_parameters() if parameter.requires_grad}
    weights = {name for name, _ in approach.named_parameters()}
    assert weights & state.keys() == trained
    other, _ = approach_on(tmp_path, lr=1e-2)
    other.load_state_dict(state, strict=False)
    assert all(map(torch.equal, other.state_dict().values(), approach.state_dict().values()))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (32, 1), (5, 2)])
def test_the_stage_is_as_long_as_iterations_a_shot_say(tmp_path: Path, batch_size: int, accumulate: int) -> None:
    options = {"epochs": 1000, "batch_size": batch_size, "accumulate": accumulate}
    approach, features = approach_on(tmp_path, iterations_per_shot=20, stage_options=options)
    pictures = features.data.count("train")
    wanted = 20 * pictures / 6
    steps = ceil(ceil(pictures / batch_size) / accumulate)  # an epoch
    assert abs(approach.stage.epochs * steps - wanted) <= steps / 2
    said = [note for note in approach.notes(features.data) if "iterations" in note]
    assert len(said) == 1
    assert (
        f"stage lora: {approach.stage.epochs} epochs, about 20 iterations a shot ({wanted / 20:.3g} training" in said[0]
    )
    assert "published are 500 (experiment=clip_lora)" in said[0]


def test_the_stage_is_never_longer_than_its_epochs(tmp_path: Path) -> None:
    assert approach_on(tmp_path, iterations_per_shot=500, stage_options={"epochs": 3})[0].stage.epochs == 3
    assert approach_on(tmp_path, iterations_per_shot=None, stage_options={"epochs": 7})[0].stage.epochs == 7
    assert approach_on(tmp_path, iterations_per_shot=1e-3, stage_options={"epochs": 7})[0].stage.epochs == 1


def test_a_stage_that_no_longer_improves_ends_and_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    """Without a learning rate the first epoch stays the best; two more pass."""
    steps = []
    for checkpoint in (None, tmp_path / "last.ckpt"):
        approach, features = approach_on(tmp_path, stage_options={"epochs": 9})
        signals = StopSignals(tmp_path)
        writer = CheckpointWriter(tmp_path, monitor="val/loss", minutes=99, signals=signals, patience=2)
        trainer = pl.Trainer(max_epochs=9, callbacks=[writer], **SILENT)
        with signals.watching():
            trainer.fit(approach, datamodule=features.data, ckpt_path=checkpoint, weights_only=True)
        steps.append(trainer.global_step)
        assert writer.best_epoch == 0
    assert steps == [9, 9]  # three epochs of three batches


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, r"approach.r=0: a rank is expected"),
        ({"r": 2.5}, r"approach.r=2.5: a rank is expected"),
        ({"alpha": 0.0}, r"approach.alpha=0.0: a number above 0"),
        ({"dropout": 1.0}, r"approach.dropout=1.0: a share"),
        ({"iterations_per_shot": 0}, r"approach.iterations_per_shot=0: a number above 0"),
        ({"sentences": 0}, r"approach.sentences=0: a whole number from 1"),
    ],
)
def test_values_that_no_training_could_have_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Lora(aligned_encoder(), stages={"lora": stage(0.1)}, **options)


def test_it_needs_one_stage_and_towers_that_were_trained_together() -> None:
    with pytest.raises(UserError, match="never trained together: take backbone=emoji_clip"):
        Lora(aligned_encoder(aligned=False), stages={"lora": stage(0.1)})
    with pytest.raises(UserError, match="has one stage, and here are one, two"):
        Lora(aligned_encoder(), stages={"one": stage(0.1), "two": stage(0.1)})
    Lora(aligned_encoder(), stages={"one": stage(0.1), "two": replace(stage(0.1), epochs=0)})


def test_the_image_tower_alone_can_be_updated(tmp_path: Path) -> None:
    options = {"train": Trained(2, 0, projections=False, logit_scale=False), "epochs": 2}
    approach, features = approach_on(tmp_path, lr=1e-2, stage_options=options)
    fit(approach, features.data)
    approach.finish(features)
    start = aligned_encoder().state_dict()
    changed = {n for n, v in approach.encoder.state_dict().items() if not torch.equal(v, start[n])}
    blocks = approach.encoder.image.num_groups
    assert changed == {f"image.model.blocks.{index}.attn.qkv.weight" for index in (blocks - 2, blocks - 1)}
    assert isinstance(approach.model(TEMPLATES), Model)
