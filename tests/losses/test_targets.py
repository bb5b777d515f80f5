"""Targets: rows that sum to one, weight where it belongs, no gradient."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipkit.losses import positive_targets, soft_targets


def test_positive_targets_spread_each_row_evenly_over_its_group() -> None:
    targets = positive_targets(torch.tensor([7, 2, 7]), torch.tensor([2, 7, 7, 7, 5]))
    third = 1 / 3
    expected = [[0, third, third, third, 0], [1, 0, 0, 0, 0], [0, third, third, third, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_positive_targets_of_pairs_without_company_are_the_diagonal() -> None:
    group = torch.tensor([4, 9, 1])
    assert torch.equal(positive_targets(group, group), torch.eye(3))


def test_soft_targets_weigh_by_the_mean_resemblance_within_each_tower() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    targets = soft_targets(image, text, logit_scale=torch.tensor(8.0))
    for i in range(4):
        weights = [math.exp(8 * float(image[i] @ image[j] + text[i] @ text[j]) / 2) for j in range(4)]
        assert targets[i].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-6)


def test_soft_targets_are_normalised_along_the_rows_of_either_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(6, 3, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(5.0)
    to_text, to_image = soft_targets(image, text, logit_scale=scale), soft_targets(text, image, logit_scale=scale)
    torch.testing.assert_close(to_text.sum(1), torch.ones(6))
    torch.testing.assert_close(to_text, to_image)  # the same rows serve both directions …
    assert not torch.allclose(to_text, to_text.T, atol=1e-3)  # … and their transpose would not


def test_soft_targets_carry_no_gradient() -> None:
    image = normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(2)), dim=1).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    assert not soft_targets(image, image, logit_scale=scale).requires_grad


def test_soft_targets_of_bfloat16_embeddings_are_float32() -> None:
    image = normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(3)), dim=1).bfloat16()
    targets = soft_targets(image, image, logit_scale=torch.tensor(100.0))
    assert targets.dtype == torch.float32
    exact = soft_targets(image.double(), image.double(), logit_scale=torch.tensor(100.0))
    torch.testing.assert_close(targets.double(), exact, rtol=1e-4, atol=1e-6)
