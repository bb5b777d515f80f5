"""Targets: rows that sum to one, weight where it belongs, no gradient."""

import math

import pytest
import torch
from torch import Tensor
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


def units(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two sets of float64 rows of unit length."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (normalize(torch.randn(count, width, generator=generator).double(), dim=1) for _ in range(2))
    return first, second


def test_soft_targets_weigh_by_the_mean_resemblance_within_each_tower() -> None:
    image, text = units(4, 6, seed=0)
    targets, _ = soft_targets(image, text, logit_scale=torch.tensor(8.0))
    for i in range(4):
        weights = [math.exp(8 * float(image[i] @ image[j] + text[i] @ text[j]) / 2) for j in range(4)]
        assert targets[i].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-6)


def test_soft_targets_are_normalised_along_the_rows_of_either_direction() -> None:
    to_text, to_image = soft_targets(*units(6, 3, seed=1), logit_scale=torch.tensor(5.0))
    torch.testing.assert_close(to_text.sum(1), torch.ones(6).double())
    torch.testing.assert_close(to_text, to_image)  # of pairs, the same rows serve both directions …
    assert not torch.allclose(to_text, to_text.T, atol=1e-3)  # … and their transpose would not


def test_soft_targets_of_several_captions_average_over_each_pictures_own() -> None:
    """Written out caption by caption; pictures have one, three and two captions, not in their order."""
    image, _ = units(3, 5, seed=2)
    text, _ = units(6, 5, seed=3)
    owner = [1, 2, 1, 0, 2, 1]
    own = [[m for m in range(6) if owner[m] == b] for b in range(3)]

    def weight(b: int, m: int) -> float:
        texts = sum(float(text[k] @ text[m]) for k in own[b]) / len(own[b])
        return math.exp(7 * (float(image[b] @ image[owner[m]]) + texts) / 2)

    to_text, to_image = soft_targets(image, text, logit_scale=torch.tensor(7.0), owner=torch.tensor(owner))
    for b in range(3):
        row = [weight(b, m) for m in range(6)]
        assert to_text[b].tolist() == pytest.approx([w / sum(row) for w in row], rel=1e-6)
    for m in range(6):
        row = [weight(b, m) for b in range(3)]
        assert to_image[m].tolist() == pytest.approx([w / sum(row) for w in row], rel=1e-6)


def test_pairs_are_the_case_of_one_caption_each() -> None:
    image, text = units(5, 4, seed=4)
    scale = torch.tensor(9.0)
    listed = soft_targets(image, text, logit_scale=scale, owner=torch.arange(5))
    for got, expected in zip(listed, soft_targets(image, text, logit_scale=scale), strict=True):
        torch.testing.assert_close(got, expected)


def test_soft_targets_carry_no_gradient() -> None:
    image = units(4, 3, seed=2)[0].requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    assert not any(targets.requires_grad for targets in soft_targets(image, image, logit_scale=scale))


@pytest.mark.parametrize("autocast", [False, True])
def test_soft_targets_of_bfloat16_embeddings_are_float32(autocast: bool) -> None:
    image = normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(3)), dim=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        targets, _ = soft_targets(image, image, logit_scale=torch.tensor(100.0))
    assert targets.dtype == torch.float32
    exact, _ = soft_targets(image.double(), image.double(), logit_scale=torch.tensor(100.0))
    torch.testing.assert_close(targets.double(), exact, rtol=1e-4, atol=1e-6)
