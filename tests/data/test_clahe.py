"""CLAHE against OpenCV's."""

import numpy as np
import pytest
import torch

from clipkit.data.clahe import Clahe, clahe

cv2 = pytest.importorskip("cv2")


def grey(height: int, width: int) -> np.ndarray:
    """A dim gradient with texture: low contrast in every tile."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    return (60 + 40 * x / width + 20 * np.sin(y / 9) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("clip", "tiles"), [(4.0, 8), (2.0, 4), (40.0, 8)])
def test_it_gives_what_opencv_gives(clip: float, tiles: int) -> None:
    picture = grey(224, 224)
    expected = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(picture).astype(int)
    found = clahe(torch.from_numpy(picture), clip=clip, tiles=tiles).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02
    assert found.std() > 1.3 * picture.std()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (8, 8), (33, 100)])
def test_any_size_goes_through(height: int, width: int) -> None:
    picture = torch.from_numpy(grey(height, width))
    assert clahe(picture, clip=4.0, tiles=8).shape == (height, width)


def test_a_colour_stays_what_it_is_and_grey_stays_grey() -> None:
    pixels = torch.from_numpy(grey(64, 64)).expand(3, 64, 64)
    found = Clahe()(pixels)
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found, pixels)
