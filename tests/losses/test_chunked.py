"""The contrastive loss in tiles: the same number and the same gradients as the formula, and no matrix kept."""

from typing import Any

import open_clip
import pytest
import torch
from references import KINDS, number, softmax_loss, unit_rows, with_gradients
from torch import Tensor

from clipkit.losses import GroupTargets, PairTargets, SoftTargets, contrastive_loss
from clipkit.losses.tiles import DENSE_LIMIT, side_of_tiles

SIDES = [1, 3, 5, 7, 11, 100, None]


@pytest.mark.parametrize("scale", [0.0, 14.3, 100.0])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_the_formula(kind: str, side: int | None, scale: float) -> None:
    targets, count = KINDS[kind]
    leaves = unit_rows(7, 0), unit_rows(count, 1), number(scale)
    found = with_gradients(
        lambda x, y, s: contrastive_loss(x, y, logit_scale=s, targets=targets, chunk_size=side), *leaves
    )
    expected = with_gradients(lambda x, y, s: softmax_loss(x, y, s, targets), *leaves)
    for got, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "soft" not in kind]
)  # soft targets move and have no gradient
def test_gradients_follow_the_loss(kind: str, side: int) -> None:
    targets, count = KINDS[kind]
    leaves = [x.requires_grad_() for x in (unit_rows(7, 2, width=3), unit_rows(count, 3, width=3), number(4.0))]
    assert torch.autograd.gradcheck(
        lambda x, y, s: contrastive_loss(x, y, logit_scale=s, targets=targets, chunk_size=side), leaves
    )


def test_loss_and_gradients_are_open_clips() -> None:
    leaves = unit_rows(37, 4, width=16), unit_rows(37, 5, width=16), number(50.0)
    found = with_gradients(lambda x, y, s: contrastive_loss(x, y, logit_scale=s, chunk_size=10), *leaves)
    expected = with_gradients(lambda x, y, s: open_clip.ClipLoss()(x, y, s), *leaves)
    for got, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_only_the_gradients_asked_for_are_made(kind: str, asked: tuple[int, ...]) -> None:
    targets, count = KINDS[kind]
    leaves = [unit_rows(7, 0), unit_rows(count, 1), number(20.0)]
    _, *expected = with_gradients(lambda x, y, s: softmax_loss(x, y, s, targets), *leaves)
    for place in asked:
        leaves[place].requires_grad_()
    contrastive_loss(leaves[0], leaves[1], logit_scale=leaves[2], targets=targets, chunk_size=4).backward()
    for place, (leaf, reference) in enumerate(zip(leaves, expected, strict=True)):
        if place in asked:
            torch.testing.assert_close(leaf.grad, reference, rtol=1e-10, atol=1e-12)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("scale", [100.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_far_beyond_what_exp_can_hold_are_fine_in_float32(kind: str, scale: float) -> None:
    """Logits from −scale to scale: opposite pictures and captions at the ends, within one tile and across tiles."""
    targets, count = KINDS[kind]
    image, text = unit_rows(7, 6, width=2), unit_rows(count, 7, width=2)
    image[1], text[2], text[5] = -image[0], image[0], -image[0]
    expected = with_gradients(lambda x, y, s: softmax_loss(x, y, s, targets), image, text, number(scale))
    for side in (2, 50):
        found = with_gradients(
            lambda x, y, s, side=side: contrastive_loss(x, y, logit_scale=s, targets=targets, chunk_size=side),
            *(x.float() for x in (image, text, number(scale))),
        )
        for got, reference in zip(found, expected, strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), reference, rtol=1e-4, atol=1e-3 if got.ndim else 1e-5)


@pytest.mark.parametrize("side", [3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_embeddings_under_autocast_are_computed_in_float32(kind: str, side: int | None) -> None:
    """In the backward pass too, should it run inside autocast (torch's own, of the whole matrix, is left outside)."""
    targets, count = KINDS[kind]
    image, text = (x.bfloat16() for x in (unit_rows(7, 8), unit_rows(count, 9)))
    expected = with_gradients(
        lambda x, y, s: softmax_loss(x, y, s, targets), image.double(), text.double(), number(100.0)
    )
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(100.0, requires_grad=True)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(leaves[0], leaves[1], logit_scale=leaves[2], targets=targets, chunk_size=side)
        if side is not None:
            loss.backward()
    if side is None:
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-6)
    for leaf, reference, rtol in zip(leaves, expected[1:], (2**-7, 2**-7, 1e-4), strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), reference, rtol=rtol, atol=rtol * float(reference.abs().max()))


def test_what_is_kept_for_the_gradient_grows_with_the_rows_not_their_square() -> None:
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    count, width = 400, 8
    number_of = torch.arange(count) // 2
    for targets in (PairTargets(), GroupTargets(number_of, number_of), SoftTargets(torch.tensor(9.0))):
        kept.clear()
        image, text = (unit_rows(count, seed, width=width).requires_grad_() for seed in (10, 11))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            contrastive_loss(image, text, logit_scale=number(9.0), targets=targets, chunk_size=64)
        assert max(kept) <= count * width
        assert sum(kept) <= count * (5 * width + 8)


@pytest.mark.parametrize("side", [1, 3, None])
@pytest.mark.parametrize(("images", "texts"), [(0, 0), (1, 1)])
def test_a_batch_of_one_or_none_costs_nothing(images: int, texts: int, side: int | None) -> None:
    found = with_gradients(
        lambda x, y, s: contrastive_loss(x, y, logit_scale=s, chunk_size=side),
        unit_rows(images, 12),
        unit_rows(texts, 13),
        number(30.0),
    )
    for got in found:
        torch.testing.assert_close(got, torch.zeros_like(got), atol=1e-14, rtol=0)


def test_a_second_backward_pass_gives_the_same_again() -> None:
    image = unit_rows(7, 14).requires_grad_()
    loss = contrastive_loss(image, unit_rows(7, 15), logit_scale=number(30.0), chunk_size=3)
    first, second = (torch.autograd.grad(2 * loss, image, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_without_gradient_nothing_is_kept() -> None:
    kept: list[Any] = []
    image = unit_rows(7, 14).requires_grad_()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        loss = contrastive_loss(image, unit_rows(7, 15), logit_scale=number(30.0), chunk_size=3)
    assert not kept
    assert not loss.requires_grad


def test_large_batches_are_tiled_and_small_ones_are_not() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert side_of_tiles("auto", 2048, DENSE_LIMIT // 2048, cpu) is None
    for device in (cpu, gpu):
        side = side_of_tiles("auto", 2048, DENSE_LIMIT // 2048 + 1, device)
        assert side is not None
        assert side >= 1
    assert side_of_tiles(None, 10**6, 10**6, cpu) is None
    assert side_of_tiles(5, 2, 2, cpu) == 5


@pytest.mark.parametrize("side", [0, -1])
def test_a_chunk_holds_at_least_one_row(side: int) -> None:
    with pytest.raises(ValueError, match=f"got {side}"):
        contrastive_loss(unit_rows(2, 0), unit_rows(2, 1), logit_scale=number(1.0), chunk_size=side)
