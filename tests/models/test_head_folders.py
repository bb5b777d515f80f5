"""Heads come back from a model folder with the same answers, to the bit."""

from pathlib import Path

import pytest
import torch
from tiny_towers import random_pictures, tiny_encoder
from torch.nn.functional import normalize

from clipkit.models.folder import load_model, save_model
from clipkit.models.heads.base import Head
from clipkit.models.heads.linear import LinearHead
from clipkit.models.heads.tip_adapter import TipAdapter
from clipkit.models.model import Model

NAMES = ("cat", "dog, or wolf", "eel", "fox")
ENCODER = tiny_encoder()


def linear(width: int, eats: str) -> LinearHead:
    head = LinearHead(NAMES, in_features=width, eats=eats)  # type: ignore[arg-type]  # one of the two
    head.fill(torch.randn(4, width), torch.randn(4))
    return head


def tip_adapter() -> TipAdapter:
    head = TipAdapter(NAMES, num_keys=5, embed_dim=ENCODER.embed_dim)
    head.remember(normalize(torch.randn(5, ENCODER.embed_dim), dim=-1), torch.tensor([3, 0, 1, 1, 3]))
    head.start_from_text(normalize(torch.randn(4, ENCODER.embed_dim), dim=-1), logit_scale=23.0)
    head.blend(1.7, 4.4)
    return head


@pytest.mark.parametrize(
    "head",
    [
        linear(ENCODER.embed_dim, "embeds"),
        linear(ENCODER.feature_dim, "features"),
        linear(ENCODER.embed_dim + ENCODER.feature_dim, "both"),
        tip_adapter(),
    ],
    ids=["linear on embeds", "linear on features", "linear on both", "tip_adapter"],
)
def test_what_is_saved_answers_alike(tmp_path: Path, head: Head) -> None:
    model = Model(ENCODER, head)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.classifier, type(head))
    assert (loaded.classifier.class_names, loaded.classifier.eats) == (NAMES, head.eats)
    assert torch.equal(loaded.classify(random_pictures(32)), model.classify(random_pictures(32)))
