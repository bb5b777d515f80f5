"""The first layer of vision transformers: patches multiplied instead of convolved, where that is faster."""

import copy

import pytest
import torch
from torch import nn

from clipkit.models.image import TimmImageTower
from clipkit.models.patches import multiply_patches

CPU_BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.mark.parametrize(("side", "bias"), [(32, True), (37, False)])  # 37: a border that no patch covers
def test_bfloat16_training_gives_the_convolutions_values_and_gradients(side: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 24, 8, 8, bias=bias)
    ours = copy.deepcopy(plain)
    multiply_patches(ours)
    pixels = torch.randn(4, 3, side, side).contiguous(memory_format=torch.channels_last)
    reference = plain(pixels)
    with torch.autocast(**CPU_BF16):
        found = ours(pixels)
    assert found.dtype == torch.bfloat16
    assert (found - reference).abs().max() < 0.02 * reference.abs().max()  # bfloat16 keeps 8 bits
    upstream = torch.randn_like(reference)
    reference.backward(upstream)
    found.backward(upstream)
    for name, parameter in plain.named_parameters():
        gradient = ours.get_parameter(name).grad
        assert gradient is not None
        assert parameter.grad is not None
        assert (gradient - parameter.grad).norm() < 0.01 * parameter.grad.norm()


def test_float32_and_evaluation_are_the_convolution_to_the_bit() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 256, 32, 32)  # sums of 3072 numbers, whose rounding shows the order they are added in
    ours = copy.deepcopy(plain)
    multiply_patches(ours)
    pixels = torch.randn(8, 3, 128, 128)
    assert torch.equal(ours(pixels), plain(pixels))
    with torch.no_grad(), torch.autocast(**CPU_BF16):
        assert torch.equal(ours(pixels), plain(pixels))


def test_only_convolutions_of_patches_change_and_their_weights_keep_their_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 4, 4, padding=1))
    multiply_patches(model)
    assert [type(part) for part in model] == [nn.Conv2d] * 3
    tower = TimmImageTower("vit_tiny_patch16_224", image_size=32)
    first = tower.model.patch_embed.proj
    assert type(first) is not nn.Conv2d
    assert "model.patch_embed.proj.weight" in tower.state_dict()
    assert type(copy.deepcopy(tower).model.patch_embed.proj) is type(first)
