"""Cosine prototypes: the pull toward the text, by hand."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipkit.models.heads.cosine import CosinePrototypes


def head() -> CosinePrototypes:
    made = CosinePrototypes(("a", "b", "c"), 2)
    made.start_from_text(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), logit_scale=2.0)
    return made


def test_trust_is_the_mean_zero_shot_probability_of_the_right_class() -> None:
    made = head()
    made.trust_text(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1]))

    def softmax(cosines: list[float], k: int) -> float:
        return math.exp(2 * cosines[k]) / sum(math.exp(2 * c) for c in cosines)

    first = (softmax([1.0, 0.0, -1.0], 0) + softmax([0.6, 0.8, -0.6], 0)) / 2
    # no picture of the third class: its text is all that is known
    assert made.pull.tolist() == pytest.approx([first, softmax([0.0, 1.0, 0.0], 1), 1.0])


def test_trust_is_of_the_text_even_after_training() -> None:
    made, other = head(), head()
    x, labels = normalize(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), dim=1), torch.arange(9) % 3
    with torch.no_grad():
        other.prototypes.add_(1.0)
    made.trust_text(x, labels)
    other.trust_text(x, labels)
    assert torch.equal(made.pull, other.pull)


def test_the_penalty_is_the_mean_trusted_squared_distance_from_the_text() -> None:
    made = head()
    made.pull.copy_(torch.tensor([0.5, 0.25, 0.0]))
    assert made.penalty().item() == 0.0
    with torch.no_grad():
        made.prototypes.add_(torch.tensor([[1.0, 2.0], [0.0, 4.0], [9.0, 9.0]]))
    assert made.penalty().item() == pytest.approx((0.5 * 5 + 0.25 * 16) / 3)
    made.penalty().backward()
    expected = torch.tensor([[0.5 * 1, 0.5 * 2], [0.0, 0.25 * 4], [0.0, 0.0]]) * 2 / 3
    torch.testing.assert_close(made.prototypes.grad, expected)


def test_without_trust_nothing_is_held() -> None:
    made = head()
    with torch.no_grad():
        made.prototypes.add_(1.0)
    assert made.penalty().item() == 0.0


def test_only_the_direction_of_a_prototype_counts() -> None:
    made = head()
    with torch.no_grad():
        made.prototypes.mul_(5.0)
    assert made(torch.tensor([[0.6, 0.8]]))[0].tolist() == pytest.approx([1.2, 1.6, -1.2])


def test_its_temperature_is_not_trained() -> None:
    assert [name for name, _ in head().named_parameters()] == ["prototypes"]
