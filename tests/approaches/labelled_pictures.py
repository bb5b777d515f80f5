"""Twelve labelled training pictures in three colours, and a tiny encoder. Imported by the tests beside it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from clipkit.data.datamodule import PairData
from clipkit.data.policies import Policy
from clipkit.data.records import Record, Records
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower

COLOURS = ("red", "green", "blue")
TINY_BERT = {
    "model_type": "bert", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


class Painter:
    """Picture number n is plain, with one channel turned up (its class), the others a little from number to number."""

    def __call__(self, name: str) -> Image.Image:
        number = int(name)
        colour = [10 + 7 * number % 30, 10 + 11 * number % 30, 10 + 13 * number % 30]
        colour[number % 3] += 190
        return Image.new("RGB", (40, 40), tuple(colour))

    def stamp(self, name: str) -> str:
        return name


def features_of(
    folder: Path,
    *,
    class_names: Sequence[str] = COLOURS,
    unlabelled: Sequence[str] = (),
    val: int = 0,
    test: int = 0,
    augmentation: Policy = "none",
    standardize: bool = False,
) -> FrozenFeatures:
    """Pictures "0" … "11" train, `val` and `test` more validate and test."""
    torch.manual_seed(0)
    encoder = DualEncoder(
        TimmImageTower("test_efficientnet", image_size=32, standardize=standardize),
        TransformersTextTower(config=TINY_BERT),
        projection=partial(LinearProjection, embed_dim=32),
        aligned=True,
    )
    splits = ["train"] * 12 + ["val"] * val + ["test"] * test
    rows = [
        Record(str(n), ("a thing",), -1, split)
        if str(n) in unlabelled
        else Record(str(n), (), n % len(class_names), split)
        for n, split in enumerate(splits)
    ]
    records = Records.from_records(rows, reader=Painter(), class_names=class_names, name="painted")
    templates = ("a {} thing", "something {}")
    data = PairData(
        records,
        preprocess=encoder.preprocess,
        tokenize=encoder.tokenize,
        templates=templates,
        augmentation=augmentation,
    )
    data.find_broken()
    return FrozenFeatures(encoder, data, FeatureStore(folder))
