"""Projections: their formulas, their start, their dropout."""

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from clipkit.models.projection import LinearMLPProjection, LinearProjection, ResidualMLPProjection

KINDS = [LinearProjection, ResidualMLPProjection, LinearMLPProjection]


def features(rows: int = 6, width: int = 10) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def exact_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def test_the_linear_projection_is_one_matrix_product() -> None:
    projection = LinearProjection(10, 4)
    (matrix,) = projection.parameters()
    torch.testing.assert_close(projection(features()), features() @ matrix.T)


def test_the_linear_mlp_projection_starts_as_a_linear_map() -> None:
    projection = LinearMLPProjection(10, 4).eval()
    x, y = features(), features().flip(0)
    torch.testing.assert_close(projection(x) + projection(y), 2 * projection((x + y) / 2))


def test_the_linear_mlp_projection_bends_once_its_last_layer_is_trained() -> None:
    projection = LinearMLPProjection(10, 4, dropout=0).train()
    optimizer = torch.optim.SGD(projection.parameters(), lr=0.1)
    projection(features()).square().sum().backward()
    optimizer.step()
    x, y = features(), features().flip(0)
    assert not torch.allclose(projection(x) + projection(y), 2 * projection((x + y) / 2), atol=1e-3)


def test_the_residual_projection_is_the_formula_of_its_docstring() -> None:
    projection = ResidualMLPProjection(10, 4).eval()
    state = projection.state_dict()
    first = features() @ state["input.weight"].T + state["input.bias"]
    inner = first + exact_gelu(first) @ state["hidden.weight"].T + state["hidden.bias"]
    torch.testing.assert_close(projection(features()), layer_norm(inner, (4,)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_projection_gives_the_width_that_was_asked_for(kind: type[nn.Module]) -> None:
    assert kind(10, 7)(features()).shape == (6, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_alone(kind: type[nn.Module]) -> None:
    projection = kind(10, 4, dropout=0.5)
    assert not torch.equal(projection.train()(features()), projection(features()))
    assert torch.equal(projection.eval()(features()), projection(features()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_without_bias_holds_no_bias_in_its_linear_layers(kind: type[nn.Module]) -> None:
    linear = [module for module in kind(10, 4, bias=False).modules() if isinstance(module, nn.Linear)]
    assert linear
    assert all(layer.bias is None for layer in linear)
