"""Tip-Adapter's head: the published formula, and what α = 0 means."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from clipkit.models.heads.tip_adapter import TipAdapter

NAMES = ("cat", "dog", "eel", "fox")
VALUES = torch.tensor([3, 0, 1, 1, 3])


def directions(count: int, width: int) -> Tensor:
    return normalize(torch.randn(count, width), dim=-1)


def head(width: int, alpha: float = 2.0, beta: float = 3.0) -> TipAdapter:
    made = TipAdapter(NAMES, num_keys=5, embed_dim=width)
    made.remember(directions(5, width), VALUES)
    made.start_from_text(directions(4, width), logit_scale=100.0)
    made.blend(alpha, beta)
    return made


def test_logits_are_the_published_formula() -> None:
    made, f = head(6).double(), directions(7, 6).double()
    memory = torch.exp(-3.0 * (1 - f @ made.keys.T)) @ one_hot(VALUES, 4).double()
    torch.testing.assert_close(made(f), 100 * f @ made.prototypes.T + 2.0 * memory)


def test_alpha_zero_is_zero_shot() -> None:
    made, f = head(6, alpha=0.0), directions(7, 6)
    assert torch.equal(made(f), made.text_logits(f))


def test_only_the_keys_are_trained() -> None:
    made = head(6)
    assert [name for name, _ in made.named_parameters()] == ["keys"]
    made.training_logits(directions(7, 6), torch.zeros(7, dtype=torch.long)).square().sum().backward()
    assert made.keys.grad is not None
    assert made.keys.grad.abs().min() > 0
