"""The dual encoder: unit rows, its temperature, and what stays in eval mode."""

import math
from functools import partial

import pytest
import torch
from tiny_towers import tiny_encoder
from torch import Tensor, nn

from clipkit.models.projection import LinearMLPProjection

TEXTS = ["a red circle", "two cats"]


def pictures(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_embeddings_are_rows_of_unit_length_in_one_space() -> None:
    encoder = tiny_encoder().eval()
    image, text = encoder.encode_image(pictures()), encoder.encode_text(encoder.tokenize(TEXTS))
    assert image.shape == (4, encoder.embed_dim)
    assert text.shape == (2, encoder.embed_dim)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("temperature", [0.07, 0.01, 0.5])
def test_the_scale_starts_at_one_over_the_temperature(temperature: float) -> None:
    assert tiny_encoder(temperature=temperature).logit_scale.exp().item() == pytest.approx(1 / temperature, rel=1e-6)


@pytest.mark.parametrize(("start", "end"), [(-3.0, 0.0), (0.0, 0.0), (2.5, 2.5), (9.0, math.log(100))])
def test_the_temperature_is_kept_between_one_hundredth_and_one(start: float, end: float) -> None:
    encoder = tiny_encoder()
    nn.init.constant_(encoder.logit_scale, start)
    encoder.clamp_logit_scale()
    assert encoder.logit_scale.item() == pytest.approx(end)
    assert encoder.logit_scale.requires_grad


def test_text_dropout_concerns_the_text_projection_alone() -> None:
    encoder = tiny_encoder(projection=partial(LinearMLPProjection, embed_dim=32, dropout=0.5), text_dropout=0.0).train()
    features = torch.ones(3, encoder.text.feature_dim)
    assert torch.equal(encoder.project_text(features), encoder.project_text(features))
    features = torch.ones(3, encoder.feature_dim)
    assert not torch.equal(encoder.project_image(features), encoder.project_image(features))


@torch.no_grad()
def test_a_frozen_trunk_in_bfloat16_gives_float32_features_close_to_the_full_ones() -> None:
    encoder = tiny_encoder().eval()
    full = encoder.trunk(pictures(), groups=0)["feature"]
    encoder.frozen_dtype = torch.bfloat16
    half = encoder.trunk(pictures(), groups=0)["feature"]
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.cosine_similarity(half, full).min() > 0.99


def test_no_gradient_reaches_the_trunk() -> None:
    encoder = tiny_encoder().train()
    encoder.project_image(encoder.tail(encoder.trunk(pictures(), groups=1), groups=1)).sum().backward()
    reached = {name for name, parameter in encoder.image.model.named_parameters() if parameter.grad is not None}
    assert reached
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0")) for name in reached)
