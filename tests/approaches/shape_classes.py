"""Labelled drawings, an aligned encoder without dropout, and one training run. Imported by the tests beside it."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from clipkit.approaches.base import Approach, Stage
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.data.datamodule import PairData
from clipkit.data.policies import Policy
from clipkit.data.records import Record, Records
from clipkit.data.sources.synthetic import SHAPES, synthetic
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower

MODEL_ARGS: dict[str, dict[str, Any]] = {"test_vit": {"patch_size": 8}, "test_resnet": {}}


def small_encoder(image: str = "test_vit", *, aligned: bool = True) -> DualEncoder:
    """Random towers at 32 pixels; `aligned` is claimed, not true: zero-shot answers are arbitrary but definite."""
    torch.manual_seed(0)
    return DualEncoder(
        TimmImageTower(image, image_size=32, model_args=MODEL_ARGS[image]),
        CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40),
        projection=partial(LinearProjection, embed_dim=16),
        aligned=aligned,
    )


def drawings(
    count: int = 60, *, class_names: Sequence[str] = SHAPES, unlabelled: Sequence[int] = (), split_seed: int = 1
) -> Records:
    """Coloured shapes in six classes, under these names; the rows in `unlabelled` have none."""
    found = synthetic(count, image_size=32, split_seed=split_seed)
    splits = found.table["split"].to_pylist()
    rows = [
        Record(found.image_name(row), tuple(found.captions(row)), split=splits[row])
        if row in unlabelled
        else Record(found.image_name(row), (), int(label) % len(class_names), splits[row])
        for row, label in enumerate(found.labels)
    ]
    return Records.from_records(rows, reader=found.reader, class_names=class_names, name="drawings")


def data_for(encoder: DualEncoder, records: Records, *, augmentation: Policy = "none", seed: int = 0) -> PairData:
    data = PairData(
        records, preprocess=encoder.preprocess, tokenize=encoder.tokenize, augmentation=augmentation, seed=seed
    )
    data.find_broken()
    return data


def stage(train: Trained = Trained(projections=False, logit_scale=False), **options: Any) -> Stage:  # noqa: B008
    """Two epochs of plain SGD: small differences stay small, as they would not under Adam."""
    given = {"epochs": 2, "batch_size": 16, "optimizer": Optimizer(torch.optim.SGD, lr=0.05), **options}
    return Stage(train=train, scheduler=Constant(), **given)


def begin(approach: Approach, data: PairData, folder: Path) -> FrozenFeatures:
    """What a run does before Lightning trains the first stage."""
    features = FrozenFeatures(approach.encoder, data, FeatureStore(folder / "features"))
    torch.manual_seed(1)
    approach.prepare(features)
    approach.enter(next(iter(approach.stages)), features)
    return features


def fit(approach: Approach, data: PairData, **options: Any) -> dict[str, float]:
    """Train the stage that was begun; what was logged."""
    trainer = pl.Trainer(
        max_epochs=approach.stage.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(approach, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def state_of(approach: Approach) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in approach.state_dict().items()}
