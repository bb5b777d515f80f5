"""The contrastive losses against formulas written out in float64, and against transformers' CLIP."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from clipkit.losses import (
    GroupTargets,
    SoftTargets,
    contrastive_loss,
    soft_targets,
    supervised_contrastive_loss,
)


def unit_rows(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def by_hand(
    image: Tensor, text: Tensor, scale: float, to_text: list[list[float]], to_image: list[list[float]]
) -> float:
    """The mean of both cross-entropies, one term at a time."""
    total = 0.0
    for rows, columns, targets in ((image, text, to_text), (text, image, to_image)):
        for row, weights in zip(rows.tolist(), targets, strict=True):
            logits = [scale * sum(a * b for a, b in zip(row, column, strict=True)) for column in columns.tolist()]
            norm = math.log(sum(math.exp(logit) for logit in logits))
            total -= sum(w * (logit - norm) for w, logit in zip(weights, logits, strict=True)) / len(rows) / 2
    return total


def one_hot(count: int) -> list[list[float]]:
    return torch.eye(count).tolist()


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_hard_targets_give_the_mean_of_both_cross_entropies(scale: float) -> None:
    image, text = unit_rows(7, 5, 0), unit_rows(7, 5, 1)
    loss = contrastive_loss(image, text, logit_scale=torch.tensor(scale, dtype=torch.float64))
    assert loss.item() == pytest.approx(by_hand(image, text, scale, one_hot(7), one_hot(7)), rel=1e-12)


def test_hard_targets_give_the_loss_of_transformers_clip() -> None:
    image, text = unit_rows(16, 8, 2, torch.float32), unit_rows(16, 8, 3, torch.float32)
    loss = contrastive_loss(image, text, logit_scale=torch.tensor(20.0))
    assert loss.item() == pytest.approx(image_text_contrastive_loss(20 * text @ image.T).item(), rel=1e-6)


def test_several_right_texts_share_the_target_in_each_direction() -> None:
    image, text = (
        unit_rows(3, 4, 4),
        unit_rows(4, 4, 5),
    )  # image 0 has texts 0 and 1; images 1 and 2 share texts 2 and 3
    image_group, text_group = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1])
    loss = contrastive_loss(
        image,
        text,
        logit_scale=torch.tensor(9.0, dtype=torch.float64),
        targets=GroupTargets(image_group, text_group),
    )
    to_text = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]
    to_image = [[1.0, 0, 0], [1.0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    assert loss.item() == pytest.approx(by_hand(image, text, 9.0, to_text, to_image), rel=1e-12)


def test_a_perfectly_matched_pair_of_opposites_costs_nothing() -> None:
    embeds = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert contrastive_loss(embeds, embeds, logit_scale=torch.tensor(100.0)).item() == pytest.approx(0, abs=1e-6)


def test_embeddings_that_say_nothing_cost_the_logarithm_of_the_batch() -> None:
    embeds = unit_rows(1, 8, 9, torch.float32).expand(32, 8)
    assert contrastive_loss(embeds, embeds, logit_scale=torch.tensor(50.0)).item() == pytest.approx(math.log(32))


def test_hard_targets_refuse_unequal_numbers_of_images_and_texts() -> None:
    with pytest.raises(ValueError, match="got 3 and 4"):
        contrastive_loss(unit_rows(3, 4, 0), unit_rows(4, 4, 1), logit_scale=torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_bfloat16_embeddings_are_computed_in_float32(kind: str) -> None:
    image, text = unit_rows(24, 16, 10, torch.bfloat16), unit_rows(24, 16, 11, torch.bfloat16)
    scale = torch.tensor(100.0)

    def loss(image: Tensor, text: Tensor) -> Tensor:
        if kind == "contrastive":
            return contrastive_loss(image, text, logit_scale=scale.to(torch.promote_types(image.dtype, torch.float32)))
        return supervised_contrastive_loss(image, torch.arange(24) // 2, logit_scale=scale)

    found = loss(image, text)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(image.double(), text.double()).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_mixed_precision_training_computes_the_loss_in_float32(kind: str) -> None:
    image, text, scale = unit_rows(24, 16, 10, torch.float32), unit_rows(24, 16, 11, torch.float32), torch.tensor(100.0)

    def loss() -> float:
        if kind == "contrastive":
            return contrastive_loss(image, text, logit_scale=scale).item()
        return supervised_contrastive_loss(image, torch.arange(24) // 2, logit_scale=scale).item()

    with torch.autocast("cpu", torch.bfloat16):
        found = loss()
    assert found == pytest.approx(loss(), rel=1e-5)


def test_no_gradient_reaches_the_embeddings_through_soft_targets() -> None:
    image, text = unit_rows(4, 3, 14).requires_grad_(), unit_rows(4, 3, 15).requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    contrastive_loss(image, text, logit_scale=scale, targets=SoftTargets(scale)).backward()
    to_text, to_image = (part.detach() for part in soft_targets(image, text, logit_scale=scale))
    leaves = [x.detach().clone().requires_grad_() for x in (image, text, scale)]
    logits = leaves[2] * leaves[0] @ leaves[1].T
    loss = -((to_text * logits.log_softmax(1)).sum() + (to_image * logits.T.log_softmax(1)).sum()) / 8
    loss.backward()
    for found, leaf in zip((image, text, scale), leaves, strict=True):
        torch.testing.assert_close(found.grad, leaf.grad)


@pytest.mark.parametrize("group", [[0, 0, 1, 1, 2], [0, 0, 0, 1, 2], [3, 3, 3, 3, 3]])
def test_the_supervised_loss_equals_an_explicit_loop(group: list[int]) -> None:
    embeds, scale, terms = unit_rows(5, 4, 16), 6.0, []
    for i, anchor in enumerate(embeds):
        positives = [j for j in range(5) if j != i and group[j] == group[i]]
        if not positives:
            continue
        others = sum(math.exp(scale * float(anchor @ embeds[j])) for j in range(5) if j != i)
        terms.append(
            -sum(math.log(math.exp(scale * float(anchor @ embeds[j])) / others) for j in positives) / len(positives)
        )
    loss = supervised_contrastive_loss(embeds, torch.tensor(group), logit_scale=torch.tensor(scale))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_the_supervised_loss_is_zero_with_zero_gradient_when_nothing_is_positive(rows: int) -> None:
    embeds = unit_rows(rows, 4, 17).requires_grad_()
    loss = supervised_contrastive_loss(embeds, torch.arange(rows), logit_scale=torch.tensor(10.0))
    loss.backward()
    assert loss.item() == 0
    assert embeds.grad is not None
    assert torch.equal(embeds.grad, torch.zeros_like(embeds))


def test_gradients_of_the_supervised_loss_are_right() -> None:
    embeds = unit_rows(5, 3, 18).requires_grad_()
    group, scale = torch.tensor([0, 0, 1, 1, 2]), torch.tensor(4.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: supervised_contrastive_loss(x, group, logit_scale=scale), (embeds,))
