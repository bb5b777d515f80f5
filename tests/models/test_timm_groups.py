"""Where timm models are cut: each family in its blocks or stages, computing what timm computes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.byobnet import ByoBlockCfg
from tiny_towers import gradients, random_pictures, randomized, tiny_encoder

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection

NARROW = {"embed_dim": 64, "depth": 3, "num_heads": 4}
WINDOWS = {"embed_dim": 24, "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4)}
CLIP_STAGES = tuple(ByoBlockCfg(type="bottle", d=1, c=c, s=s, br=0.25) for c, s in ((64, 1), (64, 2), (64, 2), (64, 2)))

# name -> (image size, further arguments, number of groups)
FAMILIES: dict[str, tuple[int, dict[str, Any], int]] = {
    "test_vit": (64, {}, 6),
    "test_vit2": (64, {}, 8),
    "test_vit3": (64, {}, 9),  # pooled by attention
    "vit_base_patch16_siglip_224": (32, NARROW, 3),
    "vit_small_patch14_reg4_dinov2": (28, NARROW, 3),  # with registers
    "vit_base_patch16_clip_224": (32, NARROW, 3),
    "deit_tiny_distilled_patch16_224": (32, NARROW, 3),  # two prefix tokens
    "eva02_tiny_patch14_224": (28, NARROW, 3),
    "vit_small_patch16_dinov3": (48, NARROW, 3),  # rotary positions for any size
    "test_resnet": (64, {}, 4),
    "resnet50d": (64, {"layers": (1, 1, 1, 1)}, 4),  # its stem is a sequence
    "resnet50_clip": (64, {"blocks": CLIP_STAGES}, 4),
    "test_byobnet": (64, {}, 4),
    "regnetx_002": (64, {}, 4),
    "regnety_002": (64, {}, 4),
    "test_convnext": (64, {}, 4),
    "test_convnext2": (64, {}, 4),
    "swin_tiny_patch4_window7_224": (56, WINDOWS, 4),
    "swinv2_tiny_window8_256": (64, WINDOWS, 4),
    "test_efficientnet": (64, {}, 5),
    "test_efficientnet_gn": (64, {}, 5),
    "mobilenetv2_035": (64, {}, 7),
    "mobilenetv3_small_050": (64, {}, 6),
    "mobilenetv4_conv_small_050": (64, {}, 5),
}
UNSPLIT = ["densenet121", "test_mambaout", "vit_small_patch16_rope_mixed_224"]


def tower(name: str, **options: Any) -> TimmImageTower:
    size, arguments, _ = FAMILIES.get(name, (64, {}, 0))
    torch.manual_seed(0)
    return randomized(TimmImageTower(name, image_size=size, model_args=arguments, **options)).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tower_cut_at_any_group_gives_timms_own_feature_to_the_bit(name: str) -> None:
    model = tower(name)
    x = random_pictures(FAMILIES[name][0])
    expected = model.model(model.normalize(x))
    assert expected.shape == (3, model.feature_dim)
    assert expected.std() > 1e-4
    assert torch.equal(model(x), expected)
    for groups in range(model.num_groups + 1):
        assert torch.equal(model.tail(model.trunk(x, groups=groups), groups=groups), expected), groups
    assert torch.equal(model.tail(model.trunk(x, groups=0, end=True), groups=0), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_group_is_a_block_of_a_transformer_or_a_stage(name: str) -> None:
    assert tower(name).num_groups == FAMILIES[name][2]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_groups_get_the_gradients_of_the_unsplit_model(name: str) -> None:
    model = tower(name)
    x = random_pictures(FAMILIES[name][0])
    weight = torch.randn(3, model.feature_dim, generator=torch.Generator().manual_seed(3))
    (model.model(model.normalize(x)) * weight).sum().backward()
    whole = gradients(model)
    for groups in (1, 2, model.num_groups):
        with torch.no_grad():
            state = model.trunk(x, groups=groups)
        (model.tail(state, groups=groups) * weight).sum().backward()
        found = gradients(model)
        trained = {id(parameter) for module in model.group_modules(groups) for parameter in module.parameters()}
        names = {parameter_name for parameter_name, p in model.named_parameters() if id(p) in trained}
        assert set(found) == names & set(whole)
        for parameter_name, gradient in found.items():
            torch.testing.assert_close(gradient, whole[parameter_name], rtol=1e-4, atol=1e-5)
    before_groups = set(whole) - set(found)
    assert before_groups  # a stem


@pytest.mark.parametrize("name", UNSPLIT)
def test_another_family_is_frozen_or_trained_as_a_whole(name: str) -> None:
    encoder = tiny_encoder()
    encoder = DualEncoder(tower(name), encoder.text, projection=partial(LinearProjection, embed_dim=8))
    parameters = list(encoder.image.parameters())
    assert encoder.image.num_groups == 0
    freeze(encoder, Trained(image_groups="all"))
    assert all(parameter.requires_grad for parameter in parameters)
    freeze(encoder, Trained(image_groups=0))
    assert not any(parameter.requires_grad for parameter in parameters)
    x = random_pictures(64)
    with torch.no_grad():
        expected = encoder.image.model(encoder.image.normalize(x))
        assert torch.equal(Trained().image_features(encoder, x), expected)
        assert torch.equal(Trained(image_groups="all").image_features(encoder, x), expected)
    for trained in (Trained(image_groups=1), Trained(norms="final")):
        with pytest.raises(UserError, match=r"cannot be split; give image_groups=0 or all"):
            freeze(encoder, trained)


def test_a_model_with_positions_for_any_size_refuses_what_is_not_square() -> None:
    with pytest.raises(UserError, match="32×128"):
        tower("vit_small_patch16_dinov3")(torch.zeros(1, 3, 32, 128))


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "regnetx_002", "test_byobnet", "test_efficientnet"])
def test_attention_pooling_is_trained_with_the_last_group(name: str) -> None:
    model = tower(name, attention_pool=True)
    x = random_pictures(64)
    assert model(x).shape == (3, model.feature_dim)
    assert model.feature_dim == model.model.num_features
    encoder = DualEncoder(model, tiny_encoder().text, projection=partial(LinearProjection, embed_dim=8))
    freeze(encoder, Trained(image_groups=1))
    pool = {name: p for name, p in model.named_parameters() if "global_pool" in name}
    assert any(parameter_name.endswith("pos_embed") for parameter_name in pool)
    features = Trained(image_groups=1).image_features(encoder, x)
    with torch.no_grad():
        assert torch.equal(features, model(x))
    features.square().sum().backward()
    for parameter_name, parameter in pool.items():
        assert parameter.grad is not None, parameter_name
        if not parameter_name.endswith("qkv.bias"):  # a bias of the keys changes nothing
            assert parameter.grad.abs().sum() > 0, parameter_name


def test_attention_pooling_adds_positions_for_the_mean_and_every_place_of_the_map() -> None:
    pool = tower("resnet18", attention_pool=True).model.global_pool
    assert pool.pos_embed.shape == (1 + 2 * 2, 512)  # 64 pixels / 32
    assert (pool.num_heads, pool.head_dim) == (8, 64)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_a_model_that_is_more_than_a_map_to_pool_refuses_attention_pooling(name: str) -> None:
    with pytest.raises(UserError, match="attention_pool=true"):
        tower(name, attention_pool=True)


def test_a_tower_pooled_by_attention_is_saved_and_loaded(tmp_path: Path) -> None:
    text = tiny_encoder().text
    encoder = DualEncoder(
        tower("resnet18", attention_pool=True), text, projection=partial(LinearProjection, embed_dim=8)
    ).eval()
    save_model(Model(encoder), tmp_path / "model")
    loaded = load_model(tmp_path / "model").encoder
    x = random_pictures(64)
    with torch.no_grad():
        assert torch.equal(loaded.image(x), encoder.image(x))
        assert torch.equal(loaded.encode_image(x), encoder.encode_image(x))


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "swin_tiny_patch4_window7_224", "test_vit"])
def test_pictures_of_another_size_than_a_tower_was_built_for_are_named(name: str) -> None:
    model = tower(name)
    size = FAMILIES[name][0]
    wrong = torch.zeros(1, 3, 2 * size, size, dtype=torch.uint8)
    with pytest.raises(UserError, match=f"{2 * size}×{size} pixels.*takes {size}×{size}"):
        model(wrong)
