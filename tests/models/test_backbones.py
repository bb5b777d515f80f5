"""Every backbone that is trained from scratch has the sizes that are documented."""

import pytest
import torch
from hydra.utils import instantiate

from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.weights import uninitialized
from clipkit.runs.compose import compose_config

# layers, width, mlp, heads, patch, image size, text tower
VITS = {
    "vit_m14_112": (6, 256, 512, 8, 14, 112, "s"),
    "vit_s16_112": (8, 512, 2048, 8, 16, 112, "s"),
    "vit_s8_112": (8, 512, 2048, 8, 8, 112, "s"),
    "vit_b16_112": (12, 768, 3072, 12, 16, 112, "b"),
    "vit_b32_224": (12, 768, 3072, 12, 32, 224, "b"),
    "vit_b32_336": (12, 768, 3072, 12, 32, 336, "b"),
    "vit_l14_224": (24, 1024, 4096, 16, 14, 224, "l"),
}
# layers, heads, head width, mlp
TEXTS = {"s": (8, 8, 64, 1024), "b": (12, 8, 64, 2048), "l": (12, 12, 64, 2048)}


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_has_its_documented_sizes(name: str) -> None:
    layers, width, mlp, heads, patch, size, text = VITS[name]
    config = compose_config("train", [f"backbone={name}"]).backbone
    with uninitialized():
        tower = instantiate(config.image)
    model = tower.model
    assert (len(model.blocks), tower.num_groups, tower.feature_dim) == (layers, layers, width)
    for block in model.blocks:
        assert tuple(block.attn.qkv.weight.shape) == (3 * width, width)
        assert block.attn.num_heads == heads
        assert tuple(block.mlp.fc1.weight.shape) == (mlp, width)
        assert tuple(block.mlp.fc2.weight.shape) == (width, mlp)
    assert tuple(model.patch_embed.proj.weight.shape) == (width, 3, patch, patch)
    assert tuple(model.pos_embed.shape) == (1, 1 + (size // patch) ** 2, width)
    assert tower.preprocess.size == size
    assert not tower.pretrained
    assert config.projection.embed_dim == 512
    assert (config.text.layers, config.text.heads) == TEXTS[text][:2]


@pytest.mark.parametrize(("size", "places"), [(224, 7), (336, 11)])
def test_a_resnet34_is_pooled_by_attention(size: int, places: int) -> None:
    config = compose_config("train", [f"backbone=resnet34_{size}"]).backbone
    with uninitialized():
        tower = instantiate(config.image)
    assert [len(getattr(tower.model, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert tuple(tower.model.global_pool.pos_embed.shape) == (1 + places**2, 512)
    assert (tower.feature_dim, tower.num_groups, tower.preprocess.size) == (512, 4, size)
    assert not tower.pretrained
    assert config.projection.embed_dim == 512


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_transformer_has_its_documented_sizes(name: str) -> None:
    layers, heads, head_width, mlp = TEXTS[name]
    config = compose_config("train", ["backbone=vit_s16_112", f"backbone/text={name}"]).backbone
    tower: CausalTextTower = instantiate(config.text, tokenizer="bytes")
    assert (tower.num_groups, tower.feature_dim, tower.tokenizer.max_length) == (layers, 512, 32)
    assert tuple(tower.model.position_embedding.shape) == (32, 512)
    assert len(tower.model.blocks) == layers
    for block in tower.model.blocks:
        assert block.heads == heads
        assert tuple(block.qkv.weight.shape) == (3 * heads * head_width, 512)
        assert tuple(block.out.weight.shape) == (512, heads * head_width)
        assert tuple(block.up.weight.shape) == (mlp, 512)
        assert tuple(block.down.weight.shape) == (512, mlp)
    with torch.no_grad():
        features = tower(tower.tokenize(["a cat", "a longer text about two dogs"]))
    assert features.shape == (2, 512)
    assert torch.isfinite(features).all()
