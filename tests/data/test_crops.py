"""Random crops: inside the picture, by torchvision's rule."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from clipkit.data.crops import RandomCrop

SIZES = [(427, 640), (640, 427), (100, 100), (1, 1), (10, 500), (500, 10), (3, 2)]


def boxes(crop: RandomCrop, height: int, width: int, count: int = 2000) -> np.ndarray:
    draws = np.random.default_rng(0).random((count, crop.draws))
    return np.array([crop.box(height, width, row.tolist()) for row in draws])


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), (1.0, 1.0)])
def test_a_crop_is_never_empty_and_never_outside(height: int, width: int, scale: tuple[float, float]) -> None:
    top, left, tall, wide = boxes(RandomCrop(scale), height, width).T
    assert (tall >= 1).all()
    assert (wide >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()


@pytest.mark.parametrize(("height", "width"), [(427, 640), (300, 300), (60, 400)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    ours = boxes(RandomCrop(scale), height, width)
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(2000)])
    for name, ours_of, theirs_of in (
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("shape", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        ("top", ours[:, 0], theirs[:, 0]),
        ("left", ours[:, 1], theirs[:, 1]),
    ):
        assert ks_2samp(ours_of, theirs_of).pvalue > 1e-3, name


def test_every_place_occurs() -> None:
    found = boxes(RandomCrop((0.25, 0.25), (1.0, 1.0)), 4, 4, 1000)
    assert {tuple(box) for box in found} == {(top, left, 2, 2) for top in range(3) for left in range(3)}
