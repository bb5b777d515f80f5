"""Training steps under Lightning: what saves memory or time changes nothing that is learned."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from clipkit.approaches.base import Stage
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.group_forwards import change_forwards
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower

ALL = Trained(image_groups="all", text_groups="all")
FUSED = Optimizer(partial(torch.optim.AdamW, eps=1e-4, fused=True), lr=1e-3)  # a large eps: rounding stays small


def approach_on(
    folder: Path, *, trained: Trained = ALL, chunk_size: int | None = None, **options: Any
) -> tuple[Contrastive, PairData]:
    """On 29 training pictures, 15 a batch, towers without dropout."""
    torch.manual_seed(0)
    text = CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40)
    image = TimmImageTower("test_vit", image_size=32, model_args={"patch_size": 8})
    encoder = DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=16))
    data = PairData(synthetic(40, image_size=32), preprocess=encoder.preprocess, tokenize=encoder.tokenize)
    data.find_broken()
    stage = Stage(2, trained, 15, FUSED, Constant(), chunk_size=chunk_size)
    approach = Contrastive(encoder, stages={"only": stage}, targets="multi_positive", image_contrast=0.25, **options)
    features = FrozenFeatures(encoder, data, FeatureStore(folder))
    approach.prepare(features)
    approach.enter("only", features)
    return approach, data


def fit(approach: Contrastive, data: PairData, **options: Any) -> dict[str, Tensor]:
    """The weights after two epochs of two batches."""
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(approach, datamodule=data)
    return {name: value.detach().clone() for name, value in approach.encoder.named_parameters()}


def assert_learned_the_same(got: dict[str, Tensor], wanted: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """What was learned differs by less than a thousandth of it."""
    for name, value in wanted.items():
        learned = (value - start[name]).norm()
        assert (got[name] - value).norm() <= 1e-3 * learned + 1e-6, name


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}],
    ids=str,
)
@pytest.mark.parametrize("trained", [ALL, Trained(image_groups=1, text_groups=1)], ids=["all", "halves"])
def test_chunks_length_groups_and_recomputed_groups_learn_what_the_plain_step_learns(
    tmp_path: Path, options: dict[str, Any], trained: Trained
) -> None:
    plain, data = approach_on(tmp_path, trained=trained)
    start = {name: value.detach().clone() for name, value in plain.encoder.named_parameters()}
    wanted = fit(plain, data, **options)
    approach, data = approach_on(tmp_path, trained=trained, chunk_size=4, text_length_groups=3)
    change_forwards(approach.encoder, [trained], recompute=True)
    assert_learned_the_same(fit(approach, data, **options), wanted, start)
    moved = {name for name, value in wanted.items() if not torch.equal(value, start[name])}
    assert "logit_scale" in moved
    assert any(name.startswith("image.model") for name in moved)


def test_clipping_really_limits_a_step_in_chunks(tmp_path: Path) -> None:
    norms = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            norms.append(torch.stack([g.norm() for g in grads]).norm())

    class Limit(Contrastive):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            clipped.append(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm())

    clipped: list[Tensor] = []
    approach, data = approach_on(tmp_path, chunk_size=4)
    approach.__class__ = Limit
    fit(approach, data, gradient_clip_val=0.05, callbacks=[Watch()])
    assert len(norms) == len(clipped) == 4
    assert max(norms) > 0.06
    assert max(clipped) <= 0.05 * (1 + 1e-4)


def test_chunks_under_bfloat16_learn_too(tmp_path: Path) -> None:
    found = {}
    for chunk_size in (None, 4):
        approach, data = approach_on(tmp_path, chunk_size=chunk_size)
        start = {name: value.detach().clone() for name, value in approach.encoder.named_parameters()}
        found[chunk_size] = fit(approach, data, precision="bf16-mixed")
    for name, value in found[None].items():
        assert (found[4][name] - value).norm() <= 0.3 * (value - start[name]).norm() + 1e-5, name


@pytest.mark.parametrize(
    ("precision", "clip", "fused"), [("16-mixed", 1.0, False), ("16-mixed", None, True), ("bf16-mixed", 1.0, True)]
)
def test_a_fused_optimiser_gives_way_where_scaled_gradients_are_clipped(
    tmp_path: Path, precision: Any, clip: float | None, fused: bool
) -> None:
    """Lightning refuses the two together, as it would find at the first step on a GPU."""
    approach, data = approach_on(tmp_path)
    plugin = MixedPrecision(precision, "cuda" if precision == "16-mixed" else "cpu")
    trainer = pl.Trainer(accelerator="cpu", plugins=[plugin], gradient_clip_val=clip, logger=False, max_epochs=1)
    approach.trainer, trainer.datamodule = trainer, data  # type: ignore[attr-defined]  # as `fit` does
    (optimizer,), _ = approach.configure_optimizers()
    assert optimizer.defaults["fused"] is fused
