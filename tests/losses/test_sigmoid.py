"""The sigmoid loss, written out and in tiles, against the formula in float64 and open_clip's."""

import pytest
import torch
from open_clip.loss import SigLipLoss
from references import KINDS, number, siglip_loss, unit_rows, with_gradients
from torch import Tensor

from clipkit.losses import GroupTargets, PairTargets, sigmoid_loss

YES_OR_NO = [kind for kind in KINDS if "soft" not in kind]


def ours(kind: str, side: int | None):  # type: ignore[no-untyped-def]
    targets = KINDS[kind][0]
    assert isinstance(targets, PairTargets | GroupTargets)
    return lambda x, y, s, b: sigmoid_loss(x, y, logit_scale=s, logit_bias=b, targets=targets, chunk_size=side)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (0.0, 0.0), (117.0, -12.9), (100.0, 80.0)])
@pytest.mark.parametrize("side", [1, 3, 5, 7, 11, 100, None])
@pytest.mark.parametrize("kind", YES_OR_NO)
def test_loss_and_every_gradient_are_the_formula(kind: str, side: int | None, scale: float, bias: float) -> None:
    leaves = unit_rows(7, 0), unit_rows(KINDS[kind][1], 1), number(scale), number(bias)
    found = with_gradients(ours(kind, side), *leaves)
    expected = with_gradients(lambda x, y, s, b: siglip_loss(x, y, s, b, KINDS[kind][0]), *leaves)
    for got, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", YES_OR_NO)
def test_gradients_follow_the_loss(kind: str) -> None:
    shapes = unit_rows(7, 2, width=3), unit_rows(KINDS[kind][1], 3, width=3)
    leaves = [x.requires_grad_() for x in (*shapes, number(4.0), number(-1.0))]
    assert torch.autograd.gradcheck(ours(kind, 4), leaves)


def test_loss_and_gradients_are_open_clips() -> None:
    leaves = unit_rows(37, 4, width=16), unit_rows(37, 5, width=16), number(10.0), number(-10.0)
    expected = with_gradients(lambda x, y, s, b: SigLipLoss()(x, y, s, b), *leaves)
    for side in (10, None):
        for got, reference in zip(with_gradients(ours("pairs", side), *leaves), expected, strict=True):
            torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 3)])
def test_only_the_gradients_asked_for_are_made(asked: tuple[int, ...]) -> None:
    kind = "groups of captions"
    leaves = [unit_rows(7, 0), unit_rows(11, 1), number(10.0), number(-5.0)]
    _, *expected = with_gradients(lambda x, y, s, b: siglip_loss(x, y, s, b, KINDS[kind][0]), *leaves)
    for place in asked:
        leaves[place].requires_grad_()
    ours(kind, 4)(*leaves).backward()
    for place, (leaf, reference) in enumerate(zip(leaves, expected, strict=True)):
        if place in asked:
            torch.testing.assert_close(leaf.grad, reference, rtol=1e-10, atol=1e-12)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("side", [3, None])
@pytest.mark.parametrize("kind", YES_OR_NO)
def test_extreme_logits_in_bfloat16_under_autocast_are_computed_in_float32(kind: str, side: int | None) -> None:
    image, text = (x.bfloat16() for x in (unit_rows(7, 6, width=2), unit_rows(KINDS[kind][1], 7, width=2)))
    image[1], text[2], text[5] = -image[0], image[0], -image[0]
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(150.0, requires_grad=True)]
    bias = torch.tensor(3.0, requires_grad=True)
    expected = with_gradients(
        lambda x, y, s, b: siglip_loss(x, y, s, b, KINDS[kind][0]), *(x.detach().double() for x in (*leaves, bias))
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(kind, side)(*leaves, bias)
        if side is not None:
            loss.backward()
    if side is None:
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
    for leaf, reference, rtol in zip((*leaves, bias), expected[1:], (2**-7, 2**-7, 1e-5, 1e-5), strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), reference, rtol=rtol, atol=rtol * float(reference.abs().max()))


def test_what_is_kept_for_the_gradient_grows_with_the_rows_not_their_square() -> None:
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    count, width = 400, 8
    leaves = [x.requires_grad_() for x in (unit_rows(count, 1, width=width), unit_rows(count, 2, width=width))]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        ours("pairs", 64)(*leaves, number(10.0), number(-10.0))
    assert sum(kept) <= 2 * count * width + 10


@pytest.mark.parametrize("side", [1, 3, None])
def test_an_empty_batch_costs_nothing(side: int | None) -> None:
    found = with_gradients(ours("pairs", side), unit_rows(0, 1), unit_rows(0, 2), number(10.0), number(-10.0))
    for got in found:
        assert torch.equal(got, torch.zeros_like(got))


def test_a_second_backward_pass_gives_the_same_again() -> None:
    image = unit_rows(7, 14).requires_grad_()
    loss = ours("pairs", 3)(image, unit_rows(7, 15), number(30.0), number(-4.0))
    first, second = (torch.autograd.grad(2 * loss, image, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.autograd.grad(loss, image)[0])


def test_without_gradient_none_is_worked_out() -> None:
    with torch.no_grad():
        loss = ours("pairs", 3)(unit_rows(7, 14).requires_grad_(), unit_rows(7, 15), number(30.0), number(-4.0))
    assert not loss.requires_grad
