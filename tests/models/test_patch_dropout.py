"""Patch dropout leaves out patches in training, at random, and nothing anywhere else."""

from typing import Any

import open_clip
import pytest
import torch
from small_clips import clip_model, siglip_model
from tiny_towers import random_pictures, randomized, tiny_encoder
from torch import Tensor

from clipkit.errors import UserError
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.open_clip_towers import OpenClipImageTower
from clipkit.models.text import plain_config
from clipkit.models.transformers_clip import TransformersImageTower


def timm_tower(name: str = "test_vit", **options: Any) -> TimmImageTower:
    arguments = {"image_size": 32, "model_args": {"patch_size": 8}, **options}
    return TimmImageTower(name, **arguments)


def open_clip_tower() -> OpenClipImageTower:
    config = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    visual = open_clip.model._build_vision_tower(16, open_clip.CLIPVisionCfg(**config), False)
    visual.proj = None
    return OpenClipImageTower(16, config, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, model=visual)


def transformers_tower(model: Any) -> TransformersImageTower:
    return TransformersImageTower(plain_config(model.config), model=model)


TOWERS: dict[str, Any] = {  # with the number of tokens that are no patches
    "timm": (timm_tower, 1),
    "timm, four registers": (lambda: timm_tower(model_args={"patch_size": 8, "reg_tokens": 4}), 5),
    "timm, no class token": (lambda: timm_tower("vit_base_patch16_siglip_gap_224", model_args={
        "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}), 0),
    "open_clip": (open_clip_tower, 1),
    "clip": (lambda: transformers_tower(clip_model().vision_model), 1),
    "siglip": (lambda: transformers_tower(siglip_model().vision_model), 0),
}  # fmt: skip


def entering(tower: Any, pixels: Tensor) -> Tensor:
    """What enters the first group: [B, L, F]."""
    seen: list[Tensor] = []
    with tower.group_modules(tower.num_groups)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        tower(pixels)
    return seen[0].detach()


def places(some: Tensor, whole: Tensor) -> list[list[int]]:
    """Which tokens of `whole` each picture's `some` are."""
    return [[int((row == token).all(1).nonzero()) for token in one] for one, row in zip(some, whole, strict=True)]


@pytest.mark.parametrize("kind", TOWERS)
def test_training_sees_a_random_choice_of_each_pictures_own_patches(kind: str) -> None:
    make, first = TOWERS[kind]
    torch.manual_seed(0)
    tower, pixels = randomized(make()).train(), random_pictures(32, 40)
    whole = entering(tower, pixels)
    assert whole.shape[1] == first + 16
    tower.drop_patches(0.5)
    some = entering(tower, pixels)
    assert some.shape[1] == first + 8
    found = places(some, whole)
    assert all(len(set(row)) == first + 8 for row in found)
    assert all(row[:first] == list(range(first)) for row in found)
    assert len({tuple(sorted(row)) for row in found}) > 30
    share = torch.tensor([row[first:] for row in found]).flatten().bincount(minlength=first + 16)[first:] / 40
    assert share.min() > 0.2
    assert share.max() < 0.8
    again = entering(tower, pixels)
    assert places(again, whole) != found


@pytest.mark.parametrize("kind", TOWERS)
def test_evaluation_sees_every_patch(kind: str) -> None:
    torch.manual_seed(0)
    tower, pixels = randomized(TOWERS[kind][0]()).eval(), random_pictures(32)
    expected = tower(pixels)
    tower.drop_patches(0.75)
    assert torch.equal(tower(pixels), expected)
    with torch.no_grad():
        assert torch.equal(tower.train()(pixels), expected)


@pytest.mark.parametrize(
    ("trained", "dropped"),
    [
        (Trained(image_groups="all"), True),
        (Trained(image_groups=1, norms="all"), True),
        (Trained(image_groups=2), False),
        (Trained(), False),
    ],
    ids=str,
)
def test_the_frozen_half_sees_every_patch_in_training_too(trained: Trained, dropped: bool) -> None:
    encoder, pixels = tiny_encoder(), random_pictures(32)
    encoder.image = timm_tower()
    freeze(encoder.train(), trained)
    expected = trained.image_features(encoder, pixels)
    encoder.image.drop_patches(0.5)
    assert torch.equal(trained.image_features(encoder, pixels), expected) != dropped


def test_one_patch_stays_however_many_are_left_out() -> None:
    tower = timm_tower(patch_dropout=0.99).train()
    assert entering(tower, random_pictures(32)).shape[1] == 2


def test_a_saved_tower_knows_nothing_of_it() -> None:
    assert timm_tower(patch_dropout=0.5).spec("inside") == timm_tower().spec("inside")


@pytest.mark.parametrize("name", ["test_efficientnet", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_a_tower_without_patches_of_their_own_refuses(name: str) -> None:
    options: dict[str, Any] = {"model_args": {}, "image_size": 224 if name.startswith("swin") else 28}
    with pytest.raises(UserError, match=r"patch_dropout=0.5: this image tower .* has no patches"):
        timm_tower(name, patch_dropout=0.5, **options)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match="a share"):
        timm_tower(patch_dropout=share)
