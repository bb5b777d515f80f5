"""Model folders: what is saved comes back, what is damaged or hostile does not load."""

import errno
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_towers import tiny_encoder
from torch import nn

import clipkit
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_encoder, load_model, save_model
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearMLPProjection, LinearProjection, ResidualMLPProjection
from clipkit.models.text import TransformersTextTower

TEXTS = ["a red circle", "deux chats — 猫", "", "words " * 40]


def model(**options: Any) -> Model:
    return Model(tiny_encoder(**options), None, ("a picture of {}",))


def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 40, 56, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(x.numpy()) for x in pixels]


def assert_same(found: Model, expected: Model) -> None:
    assert torch.equal(found.encode_image(pictures()), expected.encode_image(pictures()))
    assert torch.equal(found.encode_text(TEXTS), expected.encode_text(TEXTS))
    assert torch.equal(found.encoder.logit_scale, expected.encoder.logit_scale)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(model(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Any) -> None:
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize("kind", [LinearProjection, ResidualMLPProjection, LinearMLPProjection])
def test_a_loaded_model_gives_the_same_embeddings_and_temperature(tmp_path: Path, kind: type[nn.Module]) -> None:
    original = model(projection=partial(kind, embed_dim=16), temperature=0.031)
    save_model(original, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert_same(loaded, original)
    assert loaded.templates == original.templates
    assert not loaded.encoder.training


def test_a_loaded_model_prepares_pictures_as_the_saved_one_did(tmp_path: Path) -> None:
    image = TimmImageTower(
        "test_efficientnet", image_size=48, crop_share=0.8, mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1], pooled_stages=2
    )
    encoder = tiny_encoder()
    encoder = DualEncoder(image, encoder.text, projection=partial(LinearProjection, embed_dim=8))
    save_model(Model(encoder), tmp_path / "model")
    loaded = load_model(tmp_path / "model").encoder
    assert torch.equal(loaded.preprocess(pictures()[0]), encoder.preprocess(pictures()[0]))
    assert torch.equal(loaded.image.normalize(torch.ones(1, 3, 4, 4)), encoder.image.normalize(torch.ones(1, 3, 4, 4)))
    assert_same(Model(loaded), Model(encoder))


def test_standardised_towers_keep_their_statistics(tmp_path: Path) -> None:
    torch.manual_seed(3)
    text = tiny_encoder().text.model.config.to_dict()
    encoder = DualEncoder(
        TimmImageTower("test_efficientnet", image_size=32, standardize=True, fold_batchnorm=True),
        TransformersTextTower(config={**text, "model_type": "bert"}, standardize=True),
        projection=partial(LinearProjection, embed_dim=8),
    )
    encoder.image.standardize.fit(3 + 2 * torch.randn(50, encoder.feature_dim))
    encoder.text.standardize.fit(1 + torch.randn(50, encoder.text.feature_dim))
    save_model(Model(encoder), tmp_path / "model")
    assert_same(load_model(tmp_path / "model"), Model(encoder))


def test_a_classifier_is_saved_with_its_class_names(tmp_path: Path) -> None:
    original = model()
    original = Model(original.encoder, original.zero_shot(["cat", "dog, or wolf"]), original.templates)
    save_model(original, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.classifier is not None
    assert loaded.classifier.class_names == ("cat", "dog, or wolf")
    assert torch.equal(loaded.classify(pictures()), original.classify(pictures()))


def test_a_model_is_found_from_the_run_folder_too(saved: Path) -> None:
    assert_same(load_model(saved.parent), load_model(saved))
    assert load_encoder(str(saved)).embed_dim == 32


def test_loading_leaves_the_random_numbers_of_the_caller_alone(saved: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    load_model(saved)
    assert torch.equal(torch.rand(4), expected)


def test_a_folder_can_be_moved(saved: Path, tmp_path: Path) -> None:
    shutil.move(saved, tmp_path / "elsewhere")
    assert_same(load_model(tmp_path / "elsewhere"), model())


def test_int8_matrices_are_a_quarter_of_the_size_and_point_the_same_way(tmp_path: Path) -> None:
    original = clipkit.load("emoji_clip")
    for weights in ("float32", "int8"):
        save_model(original, tmp_path / weights, towers="pretrained", weights=weights)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "int8")}
    assert size["float32"] / size["int8"] == pytest.approx(4, rel=0.05)
    loaded = load_model(tmp_path / "int8")
    words = ["a camel", "a slice of pizza", "rain on a window"]
    for found, expected in (
        (loaded.encode_image(pictures()), original.encode_image(pictures())),
        (loaded.encode_text(words), original.encode_text(words)),
    ):
        assert torch.cosine_similarity(found, expected).min() > 0.999
    assert (
        load_file(tmp_path / "int8" / "model.safetensors")["encoder.image_projection.linear.weight"].dtype == torch.int8
    )


def test_int8_with_the_towers_inside_points_the_same_way(tmp_path: Path) -> None:
    original = model()
    save_model(original, tmp_path / "model", weights="int8")
    found = load_model(tmp_path / "model").encode_text(TEXTS)
    assert torch.cosine_similarity(found, original.encode_text(TEXTS)).min() > 0.999


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damaged_weights_are_refused(saved: Path, damage: str) -> None:
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match=r"damaged|not a complete"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 99}', "\x80"])
def test_a_damaged_description_is_refused(saved: Path, text: str) -> None:
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=saved.name):
        load_model(saved)


@pytest.mark.parametrize("place", ["encoder", "classifier"])
def test_weights_that_do_not_fit_the_description_are_refused(saved: Path, place: str) -> None:
    original = model()
    save_model(Model(original.encoder, original.zero_shot(["a", "b"])), saved)
    if place == "encoder":
        edit(saved, lambda description: description["encoder"]["image"].update(pooled_stages=2))
    else:
        edit(saved, lambda description: description["classifier"].update(class_names=["a", "b", "c"]))
    with pytest.raises(UserError, match="fit"):
        load_model(saved)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "builtins.eval",
        "subprocess.Popen",
        "clipkit.models.folder.os.system",
        "clipkit.models.folder.shutil.rmtree",
        "clipkit.models.folder.import_module",
        "clipkit.models.folder.nn.Linear",
        "clipkit.models.folder.save_model",
        "clipkit.models.model.Model",
        "clipkit.nowhere.Nothing",
        "clipkit",
        "",
    ],
)
@pytest.mark.parametrize("place", ["image", "classifier"])
def test_a_description_that_names_anything_but_our_modules_is_refused(saved: Path, target: str, place: str) -> None:
    mark = saved.parent / "ran"
    spec = {"_target_": target, "command": f"touch {mark}", "path": str(mark)}
    edit(saved, lambda d: d.update(classifier=spec) if place == "classifier" else d["encoder"].update(image=spec))
    with pytest.raises(UserError, match=r"model\.json names"):
        load_model(saved)
    assert not mark.exists()


def test_a_package_that_is_not_trusted_is_not_even_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "stranger.py").write_text(
        f"import pathlib, torch\npathlib.Path({str(mark)!r}).touch()\nA = torch.nn.ReLU\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    edit(saved, lambda d: d.update(classifier={"_target_": "stranger.A"}))
    with pytest.raises(UserError, match=r"stranger\.A"):
        load_model(saved)
    assert not mark.exists()


def test_another_package_is_trusted_only_when_it_is_named(saved: Path) -> None:
    edit(saved, lambda d: d.update(classifier={"_target_": "torch.nn.Identity"}))
    with pytest.raises(UserError, match=r"torch\.nn\.Identity"):
        load_model(saved)
    assert isinstance(load_model(saved, trust=("torch",)).classifier, nn.Identity)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_model(saved: Path, error: BaseException, monkeypatch: Any) -> None:
    newer = model(temperature=0.5)

    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(newer.encoder.text.tokenizer, "save", stop)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        save_model(newer, saved)
    assert_same(load_model(saved), model())
    if isinstance(error, OSError):
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saving_again_replaces_the_model_and_leaves_nothing_else(saved: Path) -> None:
    newer = model(temperature=0.5)
    save_model(newer, saved)
    assert_same(load_model(saved), newer)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_place_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.json"):
        load_model(tmp_path)
