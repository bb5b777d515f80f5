"""Image towers: what joins the feature of timm, and how pictures are prepared."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_towers import random_pictures, randomized
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.image import TimmImageTower
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.timm_groups import merge_batchnorm

SIZES = {"test_efficientnet": 64, "test_resnet": 64, "test_vit": 64, "test_convnext": 64}


def tower(name: str, **options: Any) -> TimmImageTower:
    torch.manual_seed(0)
    return randomized(TimmImageTower(name, image_size=SIZES[name], **options).eval())


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_the_feature_is_what_timm_pools(name: str) -> None:
    model = tower(name)
    x = random_pictures(SIZES[name])
    cfg = timm.data.resolve_model_data_config(model.model)
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    reference = model.model
    expected = reference.forward_head(reference.forward_features((x / 255 - mean) / std), pre_logits=True)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_a_deep_copy_is_a_tower_of_its_own(name: str) -> None:
    model = tower(name)
    x = random_pictures(SIZES[name])
    before, copied = model(x), deepcopy(model)
    torch.testing.assert_close(copied(x), before, rtol=0, atol=0)
    zeroed = copied.group_modules(1)[0]
    for weight in zeroed.parameters():
        weight.zero_()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert not torch.allclose(copied(x), before, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
def test_pooled_stages_join_the_averages_of_the_last_groups(name: str) -> None:
    plain, joined = tower(name), tower(name, pooled_stages=2)
    x = random_pictures(SIZES[name])
    outputs: list[Tensor] = []
    modules = joined.group_modules(2)[:2]
    hooks = [module.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for module in modules]
    feature = joined(x)
    for hook in hooks:
        hook.remove()
    averages = [out.mean((2, 3)) if out.ndim == 4 else out.mean(1) for out in outputs]
    assert joined.feature_dim == feature.shape[1] == plain.feature_dim + sum(a.shape[1] for a in averages)
    assert torch.equal(feature[:, : plain.feature_dim], plain(x))
    found = sorted(feature[0, plain.feature_dim :].tolist())
    assert found == pytest.approx(sorted(torch.cat(averages, 1)[0].tolist()), abs=1e-5)
    for groups in range(joined.num_groups + 1):
        assert torch.equal(joined.tail(joined.trunk(x, groups=groups), groups=groups), feature), groups


@pytest.mark.parametrize(("name", "stages"), [("test_efficientnet", 99), ("test_mambaout", 1)])
def test_more_pooled_stages_than_a_model_has_is_a_user_error(name: str, stages: int) -> None:
    with pytest.raises(UserError, match=f"pooled_stages={stages}"):
        TimmImageTower(name, image_size=64, pooled_stages=stages)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match="resnet50"):
        TimmImageTower("resnet5O")


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_merging_batchnorm_changes_nothing_and_leaves_none(name: str) -> None:
    model = randomized(timm.create_model(name, num_classes=0)).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    before = model(x)
    merge_batchnorm(model, 64)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def test_a_picture_gives_the_same_feature_as_uint8_and_as_float() -> None:
    model = tower("test_efficientnet")
    x = random_pictures(64)
    torch.testing.assert_close(model(x), model(x / 255))


def test_standardised_features_have_no_mean_and_unit_spread_on_what_they_were_fitted_to() -> None:
    model = tower("test_efficientnet", standardize=True)
    x = random_pictures(64, 16)
    with torch.no_grad():
        raw = model(x)
        model.standardize.fit(raw)
        feature = model(x)
    varies = raw.std(0) > 1e-4
    assert varies.any()
    torch.testing.assert_close(feature.mean(0), torch.zeros(model.feature_dim), atol=1e-3, rtol=0)
    spread = feature.std(0, correction=0)[varies]
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(40, 40), (90, 40), (40, 90), (7, 300), (32, 32)])
def test_preprocessing_gives_a_square_of_uint8_from_any_shape_and_mode(size: tuple[int, int]) -> None:
    for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK"):
        pixels = ImagePreprocess(32)(Image.new(mode, size))
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))


def test_preprocessing_resizes_the_shorter_side_and_keeps_the_centre() -> None:
    picture = Image.new("RGB", (96, 32), "blue")
    picture.paste("red", (32, 0, 64, 32))
    assert torch.equal(
        ImagePreprocess(32)(picture), torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    )
    tall = np.asarray(picture.rotate(90, expand=True).resize((64, 192), Image.Resampling.NEAREST))
    middle = ImagePreprocess(32)(Image.fromarray(tall))
    assert middle[0].float().mean() > 245
    assert middle[2].float().mean() < 10


def test_a_crop_share_below_one_cuts_the_border_away() -> None:
    picture = Image.new("RGB", (64, 64), "blue")
    picture.paste("red", (8, 8, 56, 56))
    assert ImagePreprocess(64, 1.0)(picture)[2].max() == 255
    cropped = ImagePreprocess(32, 0.5)(picture)  # the middle half of the picture
    assert cropped[2].max() == 0
    assert cropped[0].min() == 255
