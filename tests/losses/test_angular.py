"""The angular margin against pytorch-metric-learning's ArcFaceLoss (its margin is in degrees), and against mpmath."""

import math

import mpmath
import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from references import GROUPS, OWNER, number, unit_rows, with_gradients
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.errors import UserError
from clipkit.losses import (
    GroupTargets,
    PairTargets,
    angular_contrastive_loss,
    angular_margin_logits,
    contrastive_loss,
)

CLASSES, WIDTH = 6, 5
SETTINGS = [(16.0, 0.25), (64.0, 0.5), (30.0, 0.5), (4.0, math.pi / 2), (10.0, 0.0)]


def ours(x: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    cosines = normalize(x, dim=1) @ normalize(weight, dim=1).T
    return cross_entropy(angular_margin_logits(cosines, labels, scale=scale, margin=margin), labels)


def arcface(x: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> list[Tensor]:
    """Loss, and gradients in the embeddings and in the weights [C, D]."""
    reference = ArcFaceLoss(CLASSES, WIDTH, margin=math.degrees(margin), scale=scale).double()
    reference.W.data = weight.T.contiguous()
    x = x.clone().requires_grad_()
    loss = reference(x, labels)
    loss.backward()
    assert x.grad is not None
    assert reference.W.grad is not None
    return [loss.detach(), x.grad, reference.W.grad.T]


def assert_as_arcface(x: Tensor, weight: Tensor, labels: Tensor, scale: float, margin: float) -> None:
    found = with_gradients(lambda x, w: ours(x, w, labels, scale, margin), x, weight)
    for got, expected in zip(found, arcface(x, weight, labels, scale, margin), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "margin"), SETTINGS)
def test_loss_and_gradients_are_arcfaces(scale: float, margin: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    assert_as_arcface(x, weight, torch.arange(200) % CLASSES, scale, margin)


@pytest.mark.parametrize(("scale", "margin"), SETTINGS[:4])
def test_beyond_half_a_turn_loss_and_gradients_are_arcfaces(scale: float, margin: float) -> None:
    """Each picture points nearly away from its class, so that θ + m > π."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % CLASSES
    noise = torch.randn(60, WIDTH, generator=generator, dtype=torch.float64)
    x = -weight[labels] + 0.02 * noise
    angle = torch.acos((normalize(x, dim=1) * normalize(weight[labels], dim=1)).sum(1))
    assert bool((angle + margin > math.pi).all())
    assert bool((angle < math.pi - 1e-3).all())
    assert_as_arcface(x, weight, labels, scale, margin)


def exact_loss(cosines: list[float], label: int, scale: float, margin: float) -> float:
    """Equation 3 in 50 digits, by way of the angle."""
    with mpmath.workdps(50):
        angle = mpmath.acos(mpmath.mpf(cosines[label]))
        inside = angle + mpmath.mpf(margin) <= mpmath.pi
        moved = mpmath.cos(angle + margin) if inside else mpmath.cos(angle) - margin * mpmath.sin(margin)
        logits = [scale * (moved if k == label else mpmath.mpf(c)) for k, c in enumerate(cosines)]
        return float(mpmath.log(sum(mpmath.exp(z) for z in logits)) - logits[label])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "margin"), SETTINGS)
@pytest.mark.parametrize("cosine", [1.0, -1.0, 1 - 1e-15, -1 + 1e-15, 1 - 1e-9])
def test_straight_ahead_and_straight_away_loss_and_gradient_are_finite(
    cosine: float, scale: float, margin: float, dtype: torch.dtype
) -> None:
    """There ArcFaceLoss has no gradient (0 · ∞), and the margin's slope is infinite; the loss is right all the same.

    The clamped sine is right to √eps, which matters where the margin lets another class win: with m = 90°.
    """
    row = [0.31, cosine, -0.54, 0.08, 0.62, -0.11]
    cosines = torch.tensor([row], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1])
    loss = cross_entropy(angular_margin_logits(cosines, labels, scale=scale, margin=margin), labels)
    loss.backward()
    assert cosines.grad is not None
    root = 1e-6 if dtype == torch.float64 else 1e-3
    assert bool((cosines.grad.abs() <= scale * (1 + 1 / root)).all())  # and so finite
    within = 1e-6 if dtype == torch.float64 and margin < 1 else 1.01 * root * scale
    assert loss.item() == pytest.approx(exact_loss(row, 1, scale, margin), rel=0, abs=within)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_picture_on_its_prototype_or_opposite_trains_with_finite_gradients(sign: float) -> None:
    weight = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(CLASSES)
    loss, *gradients = with_gradients(lambda x, w: ours(x, w, labels, 16.0, 0.25), sign * weight, weight)
    assert all(bool(part.isfinite().all()) for part in (loss, *gradients))
    assert loss.item() == pytest.approx(arcface(sign * weight, weight, labels, 16.0, 0.25)[0].item(), abs=1e-6)


def test_the_margin_only_ever_lowers_the_right_logit_and_keeps_its_order() -> None:
    """From 180° to 0° the logit with margin rises everywhere, also where the formula changes."""
    for margin in (0.1, 0.25, 0.5, 1.0, math.pi / 2):
        cosines = torch.cos(torch.linspace(math.pi, 0, 10_001, dtype=torch.float64))[:, None]
        logits = angular_margin_logits(cosines, torch.zeros(10_001, dtype=torch.long), scale=1.0, margin=margin)
        assert bool((logits < cosines).all())
        assert bool((logits.diff(dim=0) > 0).all()), margin


def test_an_easy_margin_leaves_classes_beyond_a_right_angle_alone() -> None:
    cosines = torch.tensor([[0.8, 0.1], [-0.3, 0.1], [-0.999, 0.1]], dtype=torch.float64)
    logits = angular_margin_logits(cosines, torch.zeros(3, dtype=torch.long), scale=10.0, margin=0.5, easy_margin=True)
    expected = torch.tensor([10 * math.cos(math.acos(0.8) + 0.5), -3.0, -9.99], dtype=torch.float64)
    torch.testing.assert_close(logits[:, 0], expected)
    assert logits[:, 1].tolist() == [1.0, 1.0, 1.0]


def test_without_margin_it_is_the_cross_entropy_of_scaled_cosines() -> None:
    cosines = unit_rows(9, 0) @ unit_rows(4, 1).T
    labels = torch.arange(9) % 4
    logits = angular_margin_logits(cosines, labels, scale=16.0, margin=0.0)
    torch.testing.assert_close(logits, 16 * cosines)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_cosines_are_worked_on_in_float32(autocast: bool) -> None:
    cosines = (unit_rows(50, 0) @ unit_rows(7, 1).T).bfloat16()
    labels = torch.arange(50) % 7
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = angular_margin_logits(cosines, labels, scale=64.0, margin=0.5)
    assert logits.dtype == torch.float32
    exact = angular_margin_logits(cosines.double(), labels, scale=64.0, margin=0.5)
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("margin", [-0.01, 1.58, 28.6, math.nan, math.inf])
def test_a_margin_that_is_no_angle_up_to_90_degrees_is_refused_by_its_key(margin: float) -> None:
    with pytest.raises(UserError, match=r"approach\.margin=.*radians"):
        angular_margin_logits(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), scale=1.0, margin=margin)
    with pytest.raises(UserError, match=r"approach\.margin="):
        angular_contrastive_loss(torch.eye(2), torch.eye(2), logit_scale=torch.tensor(1.0), margin=margin)


def test_a_margin_in_degrees_is_recognised() -> None:
    with pytest.raises(UserError, match=r"28\.6° are 0\.499"):
        angular_margin_logits(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), scale=1.0, margin=28.6)


# --- pairs


def by_hand(image: Tensor, text: Tensor, right: Tensor, scale: float, margin: float) -> float:
    """Both directions, one logit at a time, by way of the angle; `right` is boolean [B, M]."""
    total = 0.0
    for rows, columns, matches in ((image, text, right), (text, image, right.T)):
        for row, wanted in zip(rows, matches.tolist(), strict=True):
            logits = []
            for column, positive in zip(columns, wanted, strict=True):
                angle = math.acos(max(-1.0, min(1.0, float(row @ column))))
                moved = math.cos(angle + margin) if angle + margin <= math.pi else None
                beyond = math.cos(angle) - margin * math.sin(margin) if moved is None else moved
                logits.append(scale * (beyond if positive else math.cos(angle)))
            norm = math.log(sum(math.exp(z) for z in logits))
            total += sum(norm - z for z, p in zip(logits, wanted, strict=True) if p) / sum(wanted) / len(rows) / 2
    return total


TARGETS: dict[str, tuple[PairTargets | GroupTargets, Tensor]] = {
    "pairs": (PairTargets(), torch.eye(7, dtype=torch.bool)),
    "captions": (PairTargets(OWNER), torch.arange(7)[:, None] == OWNER),
    "groups": (GroupTargets(GROUPS, GROUPS[OWNER]), GROUPS[:, None] == GROUPS[OWNER]),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("margin", [0.25, 1.5])  # random pairs lie beyond half a turn with 1.5, too
def test_every_right_pair_gets_the_margin_in_both_directions(kind: str, margin: float) -> None:
    targets, right = TARGETS[kind]
    image, text = unit_rows(7, 3), unit_rows(right.shape[1], 4)
    loss = angular_contrastive_loss(image, text, logit_scale=number(12.0), margin=margin, targets=targets)
    assert loss.item() == pytest.approx(by_hand(image, text, right, 12.0, margin), rel=1e-10)


@pytest.mark.parametrize("kind", TARGETS)
def test_without_margin_pairs_have_the_contrastive_loss_and_its_gradients(kind: str) -> None:
    targets, right = TARGETS[kind]
    leaves = (unit_rows(7, 5), unit_rows(right.shape[1], 6), number(14.0))
    found = with_gradients(
        lambda i, t, s: angular_contrastive_loss(i, t, logit_scale=s, margin=0.0, targets=targets), *leaves
    )
    expected = with_gradients(lambda i, t, s: contrastive_loss(i, t, logit_scale=s, targets=targets), *leaves)
    torch.testing.assert_close(found, expected)


def test_the_temperature_gets_the_gradient_of_the_logits_with_margin() -> None:
    image, text = unit_rows(5, 7), unit_rows(5, 8)
    _, _, _, found = with_gradients(
        lambda i, t, s: angular_contrastive_loss(i, t, logit_scale=s, margin=0.3), image, text, number(9.0)
    )
    eye = torch.eye(5, dtype=torch.bool)
    above, below = (by_hand(image, text, eye, 9.0 + step, 0.3) for step in (1e-5, -1e-5))
    assert found.item() == pytest.approx((above - below) / 2e-5, rel=1e-6)


def test_equal_embeddings_have_a_finite_loss_and_gradients() -> None:
    image = unit_rows(4, 9)
    found = with_gradients(
        lambda i, t, s: angular_contrastive_loss(i, t, logit_scale=s, margin=0.25), image, image, number(16.0)
    )
    assert all(bool(part.isfinite().all()) for part in found)


def test_pairs_in_bfloat16_are_compared_in_float32() -> None:
    image, text = unit_rows(8, 10).bfloat16(), unit_rows(8, 11).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = angular_contrastive_loss(image, text, logit_scale=torch.tensor(50.0), margin=0.25)
    exact = angular_contrastive_loss(image.double(), text.double(), logit_scale=number(50.0), margin=0.25)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_an_empty_batch_of_pairs_has_no_loss() -> None:
    empty = torch.zeros(0, 4)
    assert angular_contrastive_loss(empty, empty, logit_scale=torch.tensor(10.0), margin=0.25).item() == 0.0
