"""Augmentation: nothing at strength zero, everything by the draws."""

import pytest
import torch
from torch import Tensor

from clipkit.data.affine_color import AffineColor

OFF: dict[str, float] = dict.fromkeys(
    ("degrees", "shear", "translate", "zoom", "stretch", "hue", "saturation", "contrast", "brightness", "grey", "flip"),
    0.0,
)


def only(**strengths: float) -> AffineColor:
    return AffineColor(**{**OFF, **strengths})


def pictures(count: int = 4, size: int = 24) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def draws(count: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(count, AffineColor.draws, generator=torch.Generator().manual_seed(seed))


def inside(x: Tensor) -> Tensor:
    return x[..., 2:-2, 2:-2]


def test_a_policy_of_strength_zero_changes_nothing() -> None:
    x = pictures()
    torch.testing.assert_close(inside(only()(x, draws())), inside(x), atol=1e-3, rtol=0)


def test_the_middle_draws_change_nothing_but_never_flip_or_grey() -> None:
    x = pictures()
    middle = torch.full((4, AffineColor.draws), 0.5)
    torch.testing.assert_close(inside(AffineColor()(x, middle)), inside(x), atol=1e-3, rtol=0)


def test_the_draws_decide_everything() -> None:
    x, policy = pictures(), AffineColor()
    assert torch.equal(policy(x, draws()), policy(x, draws()))
    assert not torch.allclose(policy(x, draws()), policy(x, draws(seed=2)), atol=0.05)


def test_a_picture_is_augmented_the_same_in_any_batch() -> None:
    x, policy = pictures(6), AffineColor()
    whole = policy(x, draws(6))
    parts = torch.cat([policy(x[i : i + 2], draws(6)[i : i + 2]) for i in range(0, 6, 2)])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_output_stays_between_zero_and_one_at_the_extremes(value: float) -> None:
    strong = AffineColor(hue=0.5, saturation=2, contrast=2, brightness=1)
    for edge in (0.0, 0.999999):
        out = strong(torch.full((2, 3, 8, 8), value), torch.full((2, AffineColor.draws), edge))
        assert torch.isfinite(out).all()
        assert out.min() >= 0
        assert out.max() <= 1
    out = AffineColor()(pictures(64), draws(64))
    assert out.min() >= 0
    assert out.max() <= 1


def test_uint8_pictures_give_what_the_same_floats_give() -> None:
    pixels = (pictures() * 255).round().to(torch.uint8)
    torch.testing.assert_close(AffineColor()(pixels, draws()), AffineColor()(pixels / 255, draws()))


def test_the_share_of_flipped_pictures_is_the_one_asked_for_and_the_draw_says_which() -> None:
    x, numbers = pictures(1).expand(400, -1, -1, -1), draws(400)
    out = only(flip=0.3)(x, numbers)
    mirrored = x[0].flip(-1)
    flipped = torch.tensor([torch.allclose(picture, mirrored, atol=1e-3) for picture in out])
    kept = torch.tensor([torch.allclose(picture, x[0], atol=1e-3) for picture in out])
    assert torch.equal(flipped, ~kept)
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(only(flip=0.3)(x, numbers), out)


@pytest.mark.parametrize(("share", "mirrored"), [(0.0, False), (1.0, True)])
def test_pictures_are_flipped_never_at_zero_and_always_at_one(share: float, mirrored: bool) -> None:
    x = pictures(50)
    expected = x.flip(-1) if mirrored else x
    torch.testing.assert_close(only(flip=share)(x, draws(50)), expected, atol=1e-3, rtol=0)


def test_grey_pictures_have_equal_channels() -> None:
    out = only(grey=1.0)(pictures(), draws())
    torch.testing.assert_close(out[:, 0], out[:, 1])
    torch.testing.assert_close(out[:, 1], out[:, 2])
    torch.testing.assert_close(out.mean(1), pictures().mean(1), atol=1e-4, rtol=0)


def test_a_grey_picture_keeps_its_greys_under_any_hue_and_saturation() -> None:
    grey = pictures()[:, :1].expand(-1, 3, -1, -1)
    out = only(hue=0.5, saturation=0.9)(grey, draws())
    torch.testing.assert_close(inside(out), inside(grey), atol=1e-3, rtol=0)


def test_a_third_of_the_hue_circle_exchanges_the_channels() -> None:
    x, numbers = pictures(), draws()
    numbers[:, 10] = 1.0  # the strongest turn
    out = only(hue=1 / 3)(x, numbers)
    turned = [torch.roll(x, shift, dims=1) for shift in (1, 2)]
    assert any(torch.allclose(out, expected, atol=1e-3) for expected in turned)


@pytest.mark.parametrize(("draw", "expected"), [(1.0, 0.7), (0.0, 0.3), (0.5, 0.5)])
def test_brightness_is_added(draw: float, expected: float) -> None:
    out = only(brightness=0.2)(torch.full((1, 3, 8, 8), 0.5), torch.full((1, AffineColor.draws), draw))
    torch.testing.assert_close(out, torch.full_like(out, expected))


def test_ninety_degrees_turn_the_picture() -> None:
    x, numbers = pictures(), torch.ones(4, AffineColor.draws)
    out = only(degrees=90)(x, numbers)
    turned = [torch.rot90(x, k, dims=(2, 3)) for k in (1, 3)]
    assert any(torch.allclose(out, expected, atol=1e-3) for expected in turned)


def test_translation_shifts_by_a_share_of_the_side() -> None:
    x, numbers = pictures(), torch.full((4, AffineColor.draws), 0.5)
    numbers[:, 4] = 1.0
    out = only(translate=0.25)(x, numbers)  # 6 of 24 pixels, sideways
    left, right = (out[..., :18], x[..., 6:]), (out[..., 6:], x[..., :18])
    assert any(torch.allclose(found, expected, atol=1e-3) for found, expected in (left, right))
