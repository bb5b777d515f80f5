"""Augmentation policies: what they may do to a picture, and on what it depends."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.data.opening import resized_crop
from clipkit.data.policies import POLICIES, PicturePolicy, augmentation_policy, may_be_mirrored
from clipkit.errors import UserError

PICTURES = [name for name, policy in POLICIES.items() if isinstance(policy, PicturePolicy)]


def picture() -> Tensor:
    """Left half dark red, right half light blue, with a gradient downwards."""
    pixels = torch.zeros(3, 90, 120, dtype=torch.uint8)
    pixels[0, :, :60], pixels[2, :, 60:] = 160, 230
    pixels[1] = torch.arange(90, dtype=torch.uint8)[:, None]
    return pixels


def apply(name: str, draws: np.ndarray, *, mirror: bool = True, size: int = 32) -> Tensor:
    policy = POLICIES[name]
    assert isinstance(policy, PicturePolicy)
    pixels = picture()
    return policy(lambda choose, side: resized_crop(pixels, choose, side), size, draws.tolist(), mirror=mirror)


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, PicturePolicy.draws))


@pytest.mark.parametrize("name", PICTURES)
def test_a_policy_gives_bytes_of_the_right_size_and_depends_on_its_numbers_alone(name: str) -> None:
    rows = numbers(24)
    torch.manual_seed(1)
    first = [apply(name, row) for row in rows]
    torch.manual_seed(2)
    again = [apply(name, row) for row in rows[::-1]][::-1]
    assert all(x.dtype == torch.uint8 and x.shape == (3, 32, 32) for x in first)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert len({x.numpy().tobytes() for x in first}) > 12


@pytest.mark.parametrize(("name", "share"), [("clip", 0.0), ("few_shot", 0.5), ("strong", 0.5), ("text_safe", 0.5)])
def test_the_share_of_mirrored_pictures(name: str, share: float) -> None:
    def mirrored(pixels: Tensor) -> bool:
        """Whether the brighter blue is on the left."""
        blue = pixels[2].float()
        return bool(blue[:, :10].mean() > blue[:, -10:].mean())

    found = np.mean([mirrored(apply(name, row)) for row in numbers(200)])
    assert found == pytest.approx(share, abs=0.12)
    if name == "text_safe":
        assert not any(mirrored(apply(name, row, mirror=False)) for row in numbers(50))


def test_clip_shows_nearly_the_whole_picture_and_changes_no_colour() -> None:
    for row in numbers(50):
        found = apply("clip", row)
        assert found[0, :, :8].float().mean() == pytest.approx(160, abs=2)
        assert found[2, :, -8:].float().mean() == pytest.approx(230, abs=2)


def test_text_safe_keeps_every_hue() -> None:
    for row in numbers(60):
        found = apply("text_safe", row, mirror=False).float()
        red, blue = found[:, :8, :8].mean((1, 2)), found[:, :8, -8:].mean((1, 2))
        assert red[0] > 1.5 * red[2]
        assert blue[2] > 1.5 * blue[0]


@pytest.mark.parametrize(
    "caption",
    [
        "a man left of a dog", "the leftmost car", "a dog on the RIGHT", "the letter on the wall", "a bus, number 7",
        "room 101", "a sign by the road", 'a shirt that says "hello"', "handwritten words", "a big R on a cap",
        "a clock tower", "turning clockwise", "the digits of pi",
    ],
)  # fmt: skip
def test_captions_that_tell_sides_letters_or_numbers_forbid_mirroring(caption: str) -> None:
    assert not may_be_mirrored(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a dog runs",
        "A cat and I",
        "two bright birds",
        "a copyrighted cleft chin",
        "un chien",
        "猫",
        "",
        "a wordless song",
    ],
)
def test_other_captions_allow_it(caption: str) -> None:
    assert may_be_mirrored(caption)


@pytest.mark.parametrize(("name", "hint"), [("affine_colour", "did you mean affine_color"), ("zzz", "choose from")])
def test_an_unknown_policy_names_the_known_ones(name: Any, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        augmentation_policy(name)


def test_the_policy_none_is_no_policy() -> None:
    assert augmentation_policy("none") is None
