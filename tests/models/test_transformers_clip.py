"""Whole CLIPs and SigLIPs of transformers: the same numbers, ids and pixels as transformers itself."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from nasty import HALF_A_PAIR, nasty_texts
from safetensors.torch import load_file, save_file
from small_clips import SIDE, assert_splits_to_the_bit, clip_folder, clip_model, odd_pictures, siglip_folder
from torch import Tensor

import clipkit
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.model import Model
from clipkit.models.text import build_config
from clipkit.models.transformers_clip import TransformersImageTower, transformers_clip

pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has:UserWarning")  # a text that says </s>
KINDS = ("clip", "siglip")
LENGTH = {"clip": 77, "siglip": 16}
MODELS = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
PROCESSORS = {"clip": transformers.CLIPImageProcessorPil, "siglip": transformers.SiglipImageProcessorPil}
TEXTS = ["a cat", "two dogs under a tree, in the rain", "", "猫", "a red circle " * 40]


class Reference:
    """The model as transformers runs it, on what its own tokenizer and Pillow processor give."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.folder = kind, folder
        self.model = MODELS[kind].from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.processor = PROCESSORS[kind].from_pretrained(folder)

    def ids(self, texts: list[str]) -> Any:
        options = {"padding": "max_length", "truncation": True, "max_length": LENGTH[self.kind]}
        return self.tokenizer(texts, return_tensors="pt", **options)

    @torch.no_grad()
    def run(self, images: list[Any], texts: list[str]) -> Any:
        pixels = self.processor(images, return_tensors="pt").pixel_values
        encoded = self.ids(texts)
        mask = {"attention_mask": encoded["attention_mask"]} if self.kind == "clip" else {}  # SigLIP sees its padding
        return self.model(input_ids=encoded["input_ids"], pixel_values=pixels, **mask)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {"clip": clip_folder(root / "clip"), "siglip": siglip_folder(root / "siglip")}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path], kind: str) -> Reference:
    return Reference(folders[kind], kind)


@pytest.fixture(scope="module")
def model(folders: dict[str, Path], kind: str) -> Model:
    return clipkit.load(f"hf:{folders[kind]}")


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


def pixels_of(encoder: DualEncoder) -> Tensor:
    return torch.stack([encoder.preprocess(image) for image in odd_pictures()])


@torch.no_grad()
def outputs(encoder: DualEncoder, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    images = encoder.encode_image(pixels_of(encoder))
    words = encoder.encode_text(encoder.tokenize(texts))
    return {"image": images, "text": words, "logits": encoder.logits(images, words)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_embeddings_and_logits_are_those_of_transformers(model: Model, reference: Reference) -> None:
    expected = reference.run(odd_pictures(), TEXTS)
    unlike = expected.image_embeds @ expected.image_embeds.T
    assert unlike.min() < 0.9  # else any picture would do
    assert (expected.text_embeds @ expected.text_embeds.T).min() < 0.9
    wanted = {"image": expected.image_embeds, "text": expected.text_embeds, "logits": expected.logits_per_image}
    assert_close(outputs(model.encoder), wanted, atol=1e-5)


def test_the_model_and_its_name_give_the_same(folders: dict[str, Path], kind: str, model: Model) -> None:
    encoder = transformers_clip(str(folders[kind]))
    expected = outputs(encoder)
    assert torch.equal(model.encode_text(TEXTS), expected["text"])
    rgb = [image for image in odd_pictures() if image.mode == "RGB"]
    torch.testing.assert_close(model.encode_image(rgb), expected["image"][: len(rgb)], atol=1e-6, rtol=0)
    assert encoder.aligned
    assert not encoder.training
    assert {value.dtype for value in encoder.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_the_bias_of_siglip_counts(folders: dict[str, Path]) -> None:
    encoder = transformers_clip(str(folders["siglip"]))
    found = outputs(encoder)
    cosines = found["image"] @ found["text"].T
    torch.testing.assert_close(found["logits"], math.exp(2.5) * cosines - 3.7, atol=1e-5, rtol=0)
    assert transformers_clip(str(folders["clip"])).logit_bias is None


def test_pictures_are_prepared_to_the_bit(model: Model, reference: Reference) -> None:
    for image in odd_pictures():
        expected = reference.processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        found = model.encoder.preprocess(image).numpy()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=f"{image.mode} {image.size}")


def test_pixels_are_normalised_as_the_processor_does(model: Model, reference: Reference) -> None:
    image = odd_pictures()[0]
    expected = torch.from_numpy(reference.processor(image, return_tensors="np").pixel_values)
    found = model.encoder.image.normalize(model.encoder.preprocess(image)[None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_another_processor_is_followed(copied: Callable[[str], Path], kind: str) -> None:
    """Bilinear, other statistics, and squashing where the folder says so."""
    folder = copied(kind)
    size = {"height": SIDE, "width": SIDE}
    settings = {"size": size, "crop_size": size, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3}
    PROCESSORS[kind](**settings, do_center_crop=kind == "clip").save_pretrained(folder)
    reference, encoder = Reference(folder, kind), transformers_clip(str(folder))
    for image in odd_pictures():
        expected = reference.processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        np.testing.assert_array_equal(encoder.preprocess(image).numpy(), expected, err_msg=f"{image.mode} {image.size}")
    assert_close(outputs(encoder), {"image": reference.run(odd_pictures(), TEXTS).image_embeds}, atol=1e-5)


def test_ten_thousand_nasty_texts_get_the_ids_of_the_own_tokenizer(model: Model, reference: Reference) -> None:
    texts = sorted(nasty_texts(), key=len)  # so that some batches are short
    trimmed = 0
    for start in range(0, len(texts), 250):
        part = texts[start : start + 250]
        expected, found = reference.ids(part), model.encoder.tokenize(part)
        length = found["input_ids"].shape[1]
        trimmed += length < LENGTH[reference.kind]
        for name, filler in (("input_ids", reference.tokenizer.pad_token_id), ("attention_mask", 0)):
            if name == "attention_mask" and reference.kind == "siglip":
                assert bool((found[name] == 1).all())
                continue
            again = torch.nn.functional.pad(found[name], (0, LENGTH[reference.kind] - length), value=filler)
            assert torch.equal(again, expected[name])
    assert (trimmed > 0) == (reference.kind == "clip")


def test_half_a_surrogate_pair_disturbs_no_other_text(model: Model) -> None:
    tokens = model.encoder.tokenize(["a cat", HALF_A_PAIR])
    alone = model.encoder.tokenize(["a cat"])
    length = int(alone["attention_mask"].sum())
    assert torch.equal(tokens["input_ids"][0, :length], alone["input_ids"][0, :length])


def test_a_long_text_is_cut_and_keeps_its_end_token(model: Model, reference: Reference) -> None:
    ids = model.encoder.tokenize(["a cat on a mat " * 60])["input_ids"]
    assert ids.shape == (1, LENGTH[reference.kind])
    assert int(ids[0, -1]) == reference.tokenizer.eos_token_id
    assert reference.tokenizer.eos_token_id not in ids[0, :-1]


@torch.no_grad()
def test_clip_is_trimmed_to_the_longest_text_which_changes_nothing(folders: dict[str, Path]) -> None:
    encoder, reference = transformers_clip(str(folders["clip"])), Reference(folders["clip"], "clip")
    texts = ["a cat", "two dogs under a tree", "", "a <|endoftext|> b"]
    tokens = encoder.tokenize(texts)
    assert tokens["input_ids"].shape[1] == int(tokens["attention_mask"].sum(1).max()) < 77
    full = dict(reference.ids(texts))
    assert full["input_ids"].shape[1] == 77
    torch.testing.assert_close(encoder.encode_text(tokens), encoder.encode_text(full), atol=1e-6, rtol=0)


@torch.no_grad()
def test_siglip_is_always_padded_because_it_looks_at_the_padding(folders: dict[str, Path]) -> None:
    encoder, reference = transformers_clip(str(folders["siglip"])), Reference(folders["siglip"], "siglip")
    tokens = encoder.tokenize(["a cat"])
    assert tokens["input_ids"].shape == (1, LENGTH["siglip"])
    assert bool((tokens["attention_mask"] == 1).all())
    expected = reference.run(odd_pictures()[:1], ["a cat"]).text_embeds
    torch.testing.assert_close(encoder.encode_text(tokens), expected, atol=1e-5, rtol=0)
    count = len(reference.tokenizer("a cat")["input_ids"])
    trimmed = encoder.encode_text({name: value[:, :count] for name, value in tokens.items()})
    assert torch.cosine_similarity(trimmed, expected).item() < 0.99


def test_clips_of_the_first_days_are_pooled_at_the_largest_id(tmp_path: Path) -> None:
    """Their config.json says eos_token_id 2, which transformers reads as "where the largest id stands"."""
    folder = clip_folder(tmp_path / "old", eos_token_id=2)
    expected = Reference(folder, "clip").run(odd_pictures()[:1], TEXTS).text_embeds
    assert_close(outputs(transformers_clip(str(folder))), {"text": expected}, atol=1e-5)


@pytest.mark.parametrize("towers", ["inside", "pretrained"])
def test_a_saved_model_comes_back(model: Model, reference: Reference, tmp_path: Path, towers: Any) -> None:
    save_model(model, tmp_path / "model", towers=towers)
    loaded = load_model(tmp_path / "model")
    assert_close(outputs(loaded.encoder), outputs(model.encoder), atol=1e-6)
    assert torch.equal(pixels_of(loaded.encoder), pixels_of(model.encoder))
    assert loaded.encoder.max_logit_scale == model.encoder.max_logit_scale
    texts = nasty_texts(300)
    found, expected = loaded.encoder.tokenize(texts), model.encoder.tokenize(texts)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_saved_with_its_towers_needs_its_source_no_more(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    encoder = transformers_clip(str(folder))
    expected = outputs(encoder)
    save_model(Model(encoder), folder.parent / "model")
    shutil.rmtree(folder)
    assert_close(outputs(load_model(folder.parent / "model").encoder), expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_activation_survives(tmp_path: Path, activation: str) -> None:
    folder, other = tmp_path / "hub", {"gelu": "quick_gelu", "quick_gelu": "gelu"}[activation]
    clip_folder(folder, activation=activation)
    encoder = transformers_clip(str(folder))
    expected = outputs(encoder)
    save_model(Model(encoder), tmp_path / "model")
    assert_close(outputs(load_model(tmp_path / "model").encoder), expected, atol=1e-6)
    edit(folder, hidden_act=other)  # the same weights with the other activation would be plainly wrong
    wrong = outputs(transformers_clip(str(folder)))
    assert (wrong["image"] - expected["image"]).abs().max() > 1e-3
    assert (wrong["text"] - expected["text"]).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "largest"), [("clip", 100.0), ("siglip", math.exp(6))], indirect=["kind"])
def test_the_temperature_is_limited_for_clip_alone(folders: dict[str, Path], kind: str, largest: float) -> None:
    encoder = transformers_clip(str(folders[kind]))
    encoder.logit_scale.data.fill_(6.0)
    encoder.clamp_logit_scale()
    assert encoder.logit_scale.exp().item() == pytest.approx(largest, rel=1e-5)


def test_every_cut_of_both_towers_gives_the_whole_to_the_bit(model: Model) -> None:
    encoder = model.encoder
    assert (encoder.image.num_groups, encoder.text.num_groups) == (3, 2)
    assert_splits_to_the_bit(encoder, pixels_of(encoder)[:3], encoder.tokenize(TEXTS))


def test_training_the_last_layers_leaves_the_others_without_gradient(model: Model) -> None:
    tower = model.encoder.image
    with torch.no_grad():
        state = tower.trunk(pixels_of(model.encoder)[:2], groups=1)
    tower.zero_grad()
    tower.tail(state, groups=1).sum().backward()
    trained = {id(p) for module in tower.group_modules(1) for p in module.parameters()}
    for name, value in tower.named_parameters():
        assert (value.grad is not None) == (id(value) in trained), name
    tower.zero_grad()


def test_another_size_needs_leave_to_interpolate(folders: dict[str, Path], kind: str) -> None:
    with pytest.raises(UserError, match=r"trained at 32 .*interpolate_positions=true"):
        transformers_clip(str(folders[kind]), image_size=48)
    with pytest.raises(UserError, match="use 40 or 48"):
        transformers_clip(str(folders[kind]), image_size=44, interpolate_positions=True)


@torch.no_grad()
def test_positions_are_interpolated_about_as_transformers_does(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """About: both are bicubic, but clipkit's antialiases, as timm and open_clip do, which has another kernel."""
    encoder = transformers_clip(str(folders[kind]), image_size=48, interpolate_positions=True)
    assert encoder.preprocess.size == 48
    pixels = pixels_of(encoder)
    found = encoder.encode_image(pixels)
    whole = Reference(folders[kind], kind).model
    inputs = encoder.image.normalize(pixels)
    expected = whole.get_image_features(inputs, interpolate_pos_encoding=True).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    positions = encoder.image.model.embeddings.position_embedding.weight
    kept = positions.clone()
    positions.copy_(positions.flip(0))  # a wrong order would be seen
    assert (encoder.encode_image(pixels) - expected).abs().max() > 0.2
    positions.copy_(kept)
    save_model(Model(encoder), tmp_path / "model")
    torch.testing.assert_close(load_model(tmp_path / "model").encoder.encode_image(pixels), found, atol=1e-6, rtol=0)


def test_the_own_size_interpolates_nothing(folders: dict[str, Path], kind: str, model: Model) -> None:
    encoder = transformers_clip(str(folders[kind]), image_size=SIDE, interpolate_positions=True)
    assert_close(outputs(encoder), outputs(model.encoder), atol=0)


def test_pictures_of_another_size_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="40×40 pixels, but this image tower takes 32×32"):
        model.encode_image(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))


def test_without_its_weights_the_architecture_stays(folders: dict[str, Path], kind: str, model: Model) -> None:
    fresh = transformers_clip(str(folders[kind]), pretrained=False)
    assert not fresh.aligned
    shapes = {name: value.shape for name, value in fresh.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.encoder.state_dict().items()}
    image, text = outputs(fresh)["image"], outputs(fresh)["text"]
    assert not torch.allclose(image, outputs(model.encoder)["image"], atol=0.1)
    assert not torch.allclose(text, outputs(model.encoder)["text"], atol=0.1)


def test_a_tower_rebuilt_from_its_name_holds_the_same_weights(folders: dict[str, Path], kind: str) -> None:
    tower: Any = transformers_clip(str(folders[kind])).image
    again = TransformersImageTower(**{**tower.arguments, "pretrained": True})
    assert all(torch.equal(again.state_dict()[name], value) for name, value in tower.state_dict().items())
    found, expected = build_config(tower.arguments["config"]).to_dict(), tower.model.config.to_dict()
    assert found == {**expected, "dtype": found["dtype"]}


def test_another_width_than_that_of_the_weights_is_named(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    edit(folder, intermediate_size=64)
    with pytest.raises(UserError, match=rf"{folder}.*another architecture.*1[58] of another shape \(.*mlp\.fc1"):
        transformers_clip(str(folder))


def test_weights_that_are_missing_are_counted_and_named(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    state = load_file(folder / "model.safetensors")
    gone = sorted(name for name in state if "layers.1.self_attn" in name)
    assert len(gone) > 3
    kept = {name: value.clone() for name, value in state.items() if name not in gone}
    del state  # it may be a map of the file, which is written anew
    save_file(kept | {"vision_model.surplus": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"(?s)lacks {len(gone)} \({gone[0]}.*1 others \(vision_model.surplus\)"):
        transformers_clip(str(folder))


def test_more_layers_than_the_weights_have_are_named(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    edit(folder, num_hidden_layers=4)
    with pytest.raises(UserError, match=r"text_model\.encoder\.layers\.2"):
        transformers_clip(str(folder))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    state: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    mark = folder.parent / "was_here"
    torch.save({**state, "surprise": Hostile(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"{folder}.* pickle that would run code .* refused"):
        transformers_clip(str(folder))
    assert not mark.exists()


def test_a_pickle_of_tensors_alone_is_read(copied: Callable[[str], Path], kind: str, model: Model) -> None:
    folder = copied(kind)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_close(outputs(transformers_clip(str(folder))), outputs(model.encoder), atol=1e-6)


def test_half_precision_weights_become_float32(copied: Callable[[str], Path]) -> None:
    folder = copied("clip")
    clip_model().half().save_pretrained(folder)
    encoder = transformers_clip(str(folder))
    assert {value.dtype for value in encoder.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert outputs(encoder)["image"].dtype == torch.float32


def test_an_ordinary_bert_is_no_whole_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"is a bert model: a whole CLIPModel or SiglipModel is expected"):
        clipkit.load(f"hf:{tmp_path / 'bert'}")


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="/no/such/clip: no such folder"):
        clipkit.load("hf:/no/such/clip")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 4, 5000])
def test_a_damaged_file_is_an_error_of_the_user(copied: Callable[[str], Path], name: str, keep: int) -> None:
    folder = copied("clip")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(whole[:keep])
    with pytest.raises(UserError, match=str(folder)):
        transformers_clip(str(folder))
