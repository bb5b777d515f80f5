"""Weights files, sizes and arguments of timm models: those that fit, and what is said of those that do not."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_towers import random_pictures, randomized
from torch import nn

from clipkit.errors import UserError
from clipkit.models.image import TimmImageTower

NARROW = {"embed_dim": 64, "depth": 3, "num_heads": 4}


def classifier_file(folder: Path, name: str, kind: str) -> tuple[Path, nn.Module]:
    """A weights file as timm publishes them, classifier included, and the model it came from."""
    torch.manual_seed(5)
    sized = {"img_size": 64} if "vit" in name else {}
    model = randomized(timm.create_model(name, num_classes=7, **sized))
    file = folder / f"weights{kind}"
    if kind == ".safetensors":
        save_file(model.state_dict(), file)
    elif kind == ".pth":
        torch.save(model.state_dict(), file)
    else:
        file = folder / "weights.pth"
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    return file, model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", [".safetensors", ".pth", "wrapped"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet", "test_convnext", "test_byobnet"])
def test_a_weights_file_with_classifier_gives_timms_features(tmp_path: Path, name: str, kind: str) -> None:
    file, reference = classifier_file(tmp_path, name, kind)
    model = TimmImageTower(name, pretrained=str(file), image_size=64, interpolate_positions=True).eval()
    assert model.pretrained
    assert not model.update_batchnorm
    x = model.normalize(random_pictures(64))
    expected = reference.forward_head(reference.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.model(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_weights_file_of_another_image_size_is_interpolated_only_when_asked(tmp_path: Path) -> None:
    file, _ = classifier_file(tmp_path, "test_vit", ".safetensors")  # trained at 64
    assert TimmImageTower("test_vit", pretrained=str(file), image_size=64).pretrained
    with pytest.raises(UserError, match=r"position embeddings.*interpolate_positions=true"):
        TimmImageTower("test_vit", pretrained=str(file), image_size=96)
    larger = TimmImageTower("test_vit", pretrained=str(file), image_size=96, interpolate_positions=True).eval()
    assert larger(random_pictures(96)).isfinite().all()


def test_weights_of_another_architecture_are_counted_and_named(tmp_path: Path) -> None:
    file, _ = classifier_file(tmp_path, "test_resnet", ".safetensors")
    with pytest.raises(UserError) as raised:
        TimmImageTower("test_efficientnet", pretrained=str(file), image_size=64)
    message = str(raised.value)
    expected = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    assert str(file) in message
    assert f"Expected: {len(expected)} tensors" in message
    lacking = re.search(r"the file lacks (\d+) \((\S+),", message)
    unknown = re.search(r"the model has no (\d+) \((\S+),", message)
    assert lacking is not None
    assert unknown is not None
    found = load_file(file)
    assert int(lacking[1]) == len(expected.keys() - found.keys())
    assert int(unknown[1]) == len(found.keys() - expected.keys())
    assert lacking[2] in expected.keys() - found.keys()
    assert unknown[2] in found.keys() - expected.keys()


def test_weights_of_another_width_are_named_with_both_shapes(tmp_path: Path) -> None:
    file = tmp_path / "narrow.pth"
    torch.save(timm.create_model("vit_base_patch16_clip_224", img_size=32, **NARROW).state_dict(), file)
    with pytest.raises(UserError, match=r"of another shape: .*64.* in the file, .*32.* in the model"):
        TimmImageTower(
            "vit_base_patch16_clip_224",
            pretrained=str(file),
            image_size=32,
            interpolate_positions=True,
            model_args={**NARROW, "embed_dim": 32},
        )


def test_pickled_code_is_no_weights_file(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(timm.create_model("test_resnet"), file)
    with pytest.raises(UserError, match="would run code"):
        TimmImageTower("test_resnet", pretrained=str(file))


def test_an_unknown_tag_names_those_that_timm_has() -> None:
    with pytest.raises(UserError, match=r"resnet50\.no_such_tag.*resnet50\.a1_in1k"):
        TimmImageTower("resnet50.no_such_tag")


def test_another_size_for_pretrained_position_embeddings_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image_size=192.*trained at 224.*interpolate_positions=true"):
        TimmImageTower("vit_base_patch16_clip_224", pretrained=True, image_size=192)


@torch.no_grad()
def test_interpolated_positions_are_those_of_timm(tmp_path: Path) -> None:
    own = timm.create_model("vit_base_patch16_clip_224", num_classes=5, img_size=64, **NARROW)
    own = randomized(own)
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    model = TimmImageTower(
        "vit_base_patch16_clip_224",
        pretrained=str(tmp_path / "weights.pth"),
        image_size=96,
        interpolate_positions=True,
        model_args=NARROW,
    ).eval()
    own.set_input_size((96, 96))
    x = model.normalize(random_pictures(96))
    own.reset_classifier(0)
    torch.testing.assert_close(model.model(x), own.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_pretrained_size_is_a_multiple_of_the_patch(tmp_path: Path) -> None:
    own = timm.create_model("vit_base_patch16_clip_224", img_size=64, **NARROW)
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"image_size=72 .*patch size 16: use 64 or 80"):
        TimmImageTower(
            "vit_base_patch16_clip_224",
            pretrained=str(tmp_path / "weights.pth"),
            image_size=72,
            interpolate_positions=True,
            model_args=NARROW,
        )


@torch.no_grad()
def test_a_convolutional_tower_takes_pictures_of_any_size() -> None:
    model = randomized(TimmImageTower("test_resnet", image_size=64)).eval()
    x = random_pictures(96)[:, :, :64]
    assert torch.equal(model(x), model.model(model.normalize(x)))


def test_arguments_that_timm_does_not_take_are_named() -> None:
    with pytest.raises(UserError, match="no_such_argument"):
        TimmImageTower("test_vit", model_args={"no_such_argument": 1})
