"""Tip-Adapter's memory and the search for its blend, against the formula written out."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from clipkit.solvers import tip_adapter
from clipkit.solvers.tip_adapter import ALPHAS, BETAS, memory_logits, search_blend


def directions(count: int, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def formula(embeds: Tensor, keys: Tensor, values: Tensor, classes: int, beta: float) -> Tensor:
    return torch.exp(-beta * (1 - embeds @ keys.T)) @ one_hot(values, classes).double()


VALUES = torch.tensor([3, 0, 1, 1, 3, 0, 3])  # class 2 has no key, no order


@pytest.mark.parametrize("at_once", [1, 20, 2**24])
@pytest.mark.parametrize("beta", [0.0, 5.5, 50.0])
def test_memory_is_the_published_formula_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, at_once: int, beta: float
) -> None:
    monkeypatch.setattr(tip_adapter, "AT_ONCE", at_once)
    embeds, keys = directions(11, 6, 0), directions(7, 6, 1)
    found = memory_logits(embeds, keys, VALUES, num_classes=4, beta=beta)
    torch.testing.assert_close(found, formula(embeds, keys, VALUES, 4, beta), atol=1e-12, rtol=0)


def test_keys_can_be_trained_through_it() -> None:
    keys = directions(7, 6, 1).requires_grad_()
    embeds = directions(5, 6, 0)
    assert torch.autograd.gradcheck(lambda k: memory_logits(embeds, k, VALUES, num_classes=4, beta=5.5), keys)


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Validation embeddings and labels, keys and values: four classes around directions of their own."""
    centres = directions(4, 6, seed)
    labels = torch.arange(40) % 4
    embeds = normalize(centres[labels] + 0.5 * directions(40, 6, seed + 1))
    values = torch.arange(12) % 4
    return embeds, labels, normalize(centres[values] + 0.5 * directions(12, 6, seed + 2)), values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", [1.0, 0.2])
def test_the_search_finds_the_best_pair_of_the_grid(seed: int, unit: float) -> None:
    embeds, labels, keys, values = case(seed)
    text_logits = 100 * unit * embeds @ normalize(directions(4, 6, seed) + 0.8 * directions(4, 6, 9)).T
    grid = {"alphas": (0.0, 0.5, 2.0, 8.0, 32.0), "betas": (0.3, 2.0, 8.0)}

    def score(alpha: float, beta: float) -> tuple[int, float]:
        logits = text_logits + unit * alpha * formula(embeds, keys, values, 4, beta)
        return int((logits.argmax(1) == labels).sum()), -cross_entropy(logits, labels).item()

    best = max(product(*grid.values()), key=lambda pair: score(*pair))
    found = search_blend(embeds, labels, keys=keys, values=values, text_logits=text_logits, unit=unit, **grid)
    assert found == best
    assert score(*found)[0] >= score(0, 1)[0]


def test_a_memory_that_misleads_is_not_used() -> None:
    embeds, labels, keys, values = case(0)
    text_logits = 100 * one_hot(labels, 4).double()  # nothing to gain
    alpha, _ = search_blend(embeds, labels, keys=keys, values=(values + 1) % 4, text_logits=text_logits)
    assert alpha == 0


def test_the_grid_begins_with_zero_shot_and_holds_what_the_authors_search() -> None:
    assert ALPHAS[0] == 0
    assert BETAS[0] == pytest.approx(0.1)
    assert BETAS[-1] == pytest.approx(50)
    assert ALPHAS[-1] == pytest.approx(1000)
    assert all(1 < later / earlier < 1.25 for grid in (BETAS, ALPHAS[1:]) for earlier, later in pairwise(grid))
