"""Whole models of open_clip: the same numbers, ids and pixels as open_clip, for every kind of tower it builds."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from nasty import HALF_A_PAIR, nasty_texts
from safetensors.torch import save_file
from small_clips import assert_splits_to_the_bit, enliven, odd_pictures, sentencepiece_folder
from torch import Tensor
from torch.nn.functional import pad

import clipkit
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.open_clip_towers import OpenClipImageTower
from clipkit.models.text import TransformersTextTower
from clipkit.models.weights import uninitialized

TEXTS = ["a cat", "two dogs under a tree, in the rain", "", "猫 &amp; ÉTÉ", "a red circle " * 40, "a <end_of_text> b"]
VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49_408, "width": 24, "heads": 2, "layers": 2}
COCA_TEXT = {**TEXT, "context_length": 23, "width": 16, "embed_cls": True, "output_tokens": True}


def timm_visual(name: str, **options: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": 160, **options}


def configs(siglip: str, roberta: str) -> dict[str, dict[str, Any]]:
    """Small relatives of each kind of model in open_clip's list."""
    bidirectional = {
        **TEXT,
        "vocab_size": 200,
        "hf_tokenizer_name": siglip,
        "no_causal_mask": True,
        "pool_type": "last",
    }
    bidirectional |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
    hf = {"hf_model_name": roberta, "hf_tokenizer_name": roberta, "context_length": 24}
    decoder = {**TEXT, "context_length": 23, "width": 16, "attn_pooler_heads": 2}
    attention = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True}
    convnext = timm_visual("test_convnext", image_size=64, timm_pool="", timm_proj="linear")
    efficientnet = timm_visual("test_efficientnet", image_size=64, timm_pool="avg", timm_proj="mlp")
    return {
        "vit": {"vision_cfg": VIT, "text_cfg": TEXT},
        "vit_quickgelu": {"quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
        "vit_average": {
            "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
            "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49_407, "proj_bias": True},
            "custom_text": True,
        },
        "resnet": {
            "quick_gelu": True,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 32},
            "text_cfg": TEXT,
        },
        "timm_linear": {"vision_cfg": convnext, "text_cfg": TEXT},
        "timm_mlp": {"vision_cfg": {**efficientnet, "timm_proj_bias": True}, "text_cfg": TEXT},
        "timm_classifier": {
            "custom_text": True,
            "vision_cfg": timm_visual("test_efficientnet", image_size=64, timm_pool="avg", timm_proj=None),
            "text_cfg": {**TEXT, "no_causal_mask": True},
        },
        "timm_attention": {
            "vision_cfg": timm_visual("resnet10t", image_size=224, timm_pool="abs_attn", timm_proj=""),
            "text_cfg": TEXT,
        },
        "siglip": {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": timm_visual("test_vit", timm_pool="map", timm_proj="none"),
            "text_cfg": bidirectional,
        },
        "coca": {
            "custom_text": True,
            "vision_cfg": {**VIT, **attention},
            "text_cfg": COCA_TEXT,
            "multimodal_cfg": decoder,
        },
        "roberta_mlp": {"quick_gelu": True, "vision_cfg": VIT, "text_cfg": {**hf, "hf_proj_type": "mlp"}},
        "roberta_linear": {
            "vision_cfg": VIT,
            "text_cfg": {**hf, "hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"},
        },
        "roberta_first": {
            "vision_cfg": VIT,
            "text_cfg": {**hf, "hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"},
        },
    }


KINDS = tuple(configs("", ""))


def roberta_folder(folder: Path) -> Path:
    """A small RoBERTa with a byte tokenizer; its padding id is 1, from which it counts its positions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    special |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, **sizes
    )
    enliven(transformers.RobertaModel(config)).save_pretrained(folder)
    return folder


class Zoo:
    """The small models, each with its weights file; made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs = configs(str(sentencepiece_folder(folder / "spiece")), str(roberta_folder(folder / "roberta")))
        for name, config in self.configs.items():
            (folder / f"small_{name}.json").write_text(json.dumps({"embed_dim": 16, **config}))
        open_clip.add_model_config(folder)
        self.made: dict[str, Any] = {}

    def reference(self, kind: str) -> Any:
        """The model that open_clip builds, with lively weights, which are in `file(kind)` too."""
        if kind not in self.made:
            torch.manual_seed(0)
            model = enliven(open_clip.create_model(f"small_{kind}", pretrained_hf=False), seed=2)
            model.logit_scale.data.fill_(2.3)
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, self.file(kind))
            self.made[kind] = model
        return self.made[kind]

    def file(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"

    def name(self, kind: str, file: Path | None = None) -> str:
        self.reference(kind)
        return f"small_{kind}/{file or self.file(kind)}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    paths, known = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    yield Zoo(tmp_path_factory.mktemp("zoo"))
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths
    open_clip.factory._MODEL_CONFIGS = known


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(zoo: Zoo, kind: str) -> DualEncoder:
    return open_clip_model(zoo.name(kind))


def pixels_of(encoder: DualEncoder, count: int = 4) -> Tensor:
    return torch.stack([encoder.preprocess(image) for image in odd_pictures()[:count]])


@torch.no_grad()
def outputs(encoder: DualEncoder, pixels: Tensor, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    images, words = encoder.encode_image(pixels), encoder.encode_text(encoder.tokenize(texts))
    return {"image": images, "text": words, "logits": encoder.logits(images, words)}


@torch.no_grad()
def expected_outputs(model: Any, arch: str, pixels: Tensor) -> dict[str, Tensor]:
    """What open_clip gives, whose statistics of pixels are CLIP's unless a tag says otherwise."""
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    inputs = (pixels.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    ids = open_clip.get_tokenizer(arch)(TEXTS)
    images, words = model.encode_image(inputs, normalize=True), model.encode_text(ids, normalize=True)
    if hasattr(model, "get_logits"):
        logits = model.get_logits(inputs, ids)[0]
    else:  # CoCa's forward gives what they are made of; its decoder wants as many pictures as texts
        given = model(inputs[:1].expand(len(ids), -1, -1, -1), ids)
        given["image_features"] = images
        logits = given["logit_scale"] * given["image_features"] @ given["text_features"].T
    return {"image": images, "text": words, "logits": logits}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_embeddings_and_logits_are_those_of_open_clip(zoo: Zoo, kind: str, encoder: DualEncoder) -> None:
    pixels = pixels_of(encoder)
    expected = expected_outputs(zoo.reference(kind), f"small_{kind}", pixels)
    for embeds in (expected["image"], expected["text"]):
        assert torch.cdist(embeds, embeds).max() > 0.03  # else any input would do
    assert_close(outputs(encoder, pixels), expected, atol=1e-5)


def test_a_saved_model_comes_back(zoo: Zoo, kind: str, encoder: DualEncoder, tmp_path: Path) -> None:
    save_model(Model(encoder), tmp_path / "model")
    loaded = load_model(tmp_path / "model").encoder
    pixels = pixels_of(encoder)
    assert torch.equal(pixels_of(loaded), pixels)
    assert_close(outputs(loaded, pixels), outputs(encoder, pixels), atol=1e-6)
    assert loaded.max_logit_scale == encoder.max_logit_scale
    texts = nasty_texts(200)
    found, expected = loaded.tokenize(texts), encoder.tokenize(texts)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@torch.no_grad()
def test_a_text_alone_is_what_it_is_among_others(encoder: DualEncoder) -> None:
    """Trimmed to its own length or padded to another's: the same."""
    together = encoder.encode_text(encoder.tokenize(TEXTS))
    alone = torch.cat([encoder.encode_text(encoder.tokenize([text])) for text in TEXTS])
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=0)


def test_every_cut_of_both_towers_gives_the_whole_to_the_bit(kind: str, encoder: DualEncoder) -> None:
    if encoder.image.num_groups == 0:
        assert kind == "timm_attention"  # its head is no module of timm's: whole or not at all
        return
    assert_splits_to_the_bit(encoder, pixels_of(encoder, 2), encoder.tokenize(TEXTS))


def test_a_model_is_loaded_by_its_name(zoo: Zoo) -> None:
    model, reference = clipkit.load(f"open_clip:{zoo.name('vit')}"), zoo.reference("vit")
    images = [image for image in odd_pictures() if image.mode == "RGB"]
    prepare = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        expected = reference.encode_image(torch.stack([prepare(image) for image in images]), normalize=True)
        texts = reference.encode_text(open_clip.get_tokenizer("small_vit")(TEXTS), normalize=True)
    torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    assert model.encoder.aligned


def test_towers_of_other_libraries_become_their_own_kinds(zoo: Zoo) -> None:
    assert isinstance(open_clip_model(zoo.name("timm_mlp")).image, TimmImageTower)
    assert isinstance(open_clip_model(zoo.name("resnet")).image, OpenClipImageTower)
    assert isinstance(open_clip_model(zoo.name("roberta_mlp")).text, TransformersTextTower)


def test_a_saved_model_needs_its_tokenizer_folder_no_more(zoo: Zoo, tmp_path: Path) -> None:
    spiece = sentencepiece_folder(tmp_path / "spiece")
    config = {**zoo.configs["siglip"], "embed_dim": 64}
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": str(spiece)}
    (zoo.folder / "small_moved.json").write_text(json.dumps(config))
    open_clip.add_model_config(zoo.folder)
    zoo.reference("siglip")
    encoder = open_clip_model(f"small_moved/{zoo.file('siglip')}")
    save_model(Model(encoder), tmp_path / "model")
    spiece.rename(tmp_path / "elsewhere")
    loaded, pixels = load_model(tmp_path / "model").encoder, pixels_of(encoder)
    assert_close(outputs(loaded, pixels), outputs(encoder, pixels), atol=1e-6)


def test_the_towers_of_open_clip_cannot_be_left_out(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use save\.towers=inside"):
        save_model(Model(open_clip_model(zoo.name("vit"))), tmp_path / "model", towers="pretrained")


def test_the_temperature_is_limited_where_there_is_no_bias(zoo: Zoo) -> None:
    for kind, largest in (("vit", 100.0), ("siglip", np.exp(6.0))):
        encoder = open_clip_model(zoo.name(kind))
        encoder.logit_scale.data.fill_(6.0)
        encoder.clamp_logit_scale()
        assert encoder.logit_scale.exp().item() == pytest.approx(largest, rel=1e-5)


def test_fresh_weights_need_no_tag(zoo: Zoo) -> None:
    fresh, trained = open_clip_model("small_vit", pretrained=False), open_clip_model(zoo.name("vit"))
    assert not fresh.aligned
    pixels = pixels_of(trained)
    assert not torch.allclose(outputs(fresh, pixels)["image"], outputs(trained, pixels)["image"], atol=0.05)


def test_files_of_plain_clip_and_of_training_scripts_are_read(zoo: Zoo, tmp_path: Path) -> None:
    """open_clip's own class keeps the text tower at the top; its trainer wraps all in a table with "module."."""
    pixels = pixels_of(open_clip_model(zoo.name("vit")))
    expected = expected_outputs(zoo.reference("vit"), "small_vit", pixels)
    state = zoo.reference("vit").state_dict()
    custom = open_clip.create_model("small_vit", force_custom_text=True)
    custom.load_state_dict(open_clip.model.convert_to_custom_text_state_dict(dict(state)))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    for number, content in enumerate((dict(state), custom.state_dict(), wrapped)):
        torch.save(content, tmp_path / f"{number}.pt")
        found = outputs(open_clip_model(f"small_vit/{tmp_path / f'{number}.pt'}"), pixels)
        assert_close(found, expected, atol=1e-5)


def test_weights_of_another_picture_size_are_interpolated_as_open_clip_does(zoo: Zoo, tmp_path: Path) -> None:
    (zoo.folder / "small_larger.json").write_text(
        json.dumps(
            {"embed_dim": 16, "vision_cfg": {**VIT, "image_size": 48}, "text_cfg": {**TEXT, "context_length": 16}}
        )
    )
    open_clip.add_model_config(zoo.folder)
    zoo.reference("vit")
    encoder = open_clip_model(f"small_larger/{zoo.file('vit')}")
    reference = open_clip.create_model("small_larger", pretrained=str(zoo.file("vit"))).eval()
    pixels = pixels_of(encoder)
    assert pixels.shape[-1] == 48
    assert_close(outputs(encoder, pixels), expected_outputs(reference, "small_larger", pixels), atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "siglip", "roberta_mlp", "coca"], indirect=True)
def test_ten_thousand_nasty_texts_get_the_ids_of_open_clip(zoo: Zoo, kind: str) -> None:
    encoder, tokenizer = open_clip_model(zoo.name(kind)), open_clip.get_tokenizer(f"small_{kind}")
    filler = int(getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0))
    cut = 0
    count = 1_000 if kind == "coca" else 10_000  # the tokenizer of "vit" once more
    texts = sorted([*nasty_texts(count), HALF_A_PAIR], key=len)  # so that some batches are short
    for start in range(0, len(texts), 250):
        part = texts[start : start + 250]
        expected, tokens = tokenizer(part), encoder.tokenize(part)
        ids, full = tokens["input_ids"], expected.shape[1]
        cut += ids.shape[1] < full
        if kind == "vit":  # what a text holds after the end token that it names itself is never looked at
            reached = torch.arange(full) <= expected.argmax(1, keepdim=True)
            expected = expected.where(reached, filler)
            ids = ids.where(reached[:, : ids.shape[1]], filler)
            assert torch.equal(pad(tokens["attention_mask"], (0, full - ids.shape[1])), reached.long())
        elif kind == "roberta_mlp":
            assert torch.equal(tokens["attention_mask"], ids.ne(filler).long())
        else:
            assert bool((tokens["attention_mask"] == 1).all())
        assert torch.equal(pad(ids, (0, full - ids.shape[1]), value=filler), expected)
    assert (cut > 0) == (kind in ("vit", "roberta_mlp"))


@torch.no_grad()
def test_siglip_looks_at_its_padding(zoo: Zoo) -> None:
    encoder = open_clip_model(zoo.name("siglip"))
    tokens = encoder.tokenize(["a cat"])
    assert tokens["input_ids"].shape == (1, 24)
    trimmed = {name: value[:, :12] for name, value in tokens.items()}
    assert torch.cosine_similarity(encoder.encode_text(trimmed), encoder.encode_text(tokens)).item() < 0.99


TAGS = [
    {"resize_mode": "shortest", "interpolation": "bicubic"},
    {"resize_mode": "shortest", "interpolation": "bilinear", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    {"resize_mode": "squash", "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"resize_mode": "longest", "interpolation": "bicubic"},
    {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 127},
    {"resize_mode": "squash", "interpolation": "bilinear"},
    {},
]


@pytest.mark.parametrize("settings", TAGS, ids=lambda tag: "_".join(str(value) for value in tag.values()) or "default")
def test_the_preprocessing_of_a_tag_is_followed_to_the_bit(
    zoo: Zoo, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag as in open_clip's list, whose file is here already."""
    zoo.reference("vit")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small_vit", {"tag": {"hf_hub": "nobody/small/", **settings}})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda known: str(zoo.file("vit")))
    monkeypatch.setattr("clipkit.models.hub._unreachable", lambda: None)
    encoder = open_clip_model("small_vit/tag")
    prepare = open_clip.image_transform(32, is_train=False, **settings)
    neutral = open_clip.image_transform(32, is_train=False, **{**settings, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    for image in odd_pictures():
        image = image.convert("RGB")  # clipkit does so first; open_clip resizes a palette's numbers
        pixels = encoder.preprocess(image)
        expected = (neutral(image) * 255).round().to(torch.uint8)
        assert torch.equal(pixels, expected), f"{image.mode} {image.size}"
        normalised = encoder.image.normalize(pixels[None])[0]
        torch.testing.assert_close(normalised, prepare(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_is_that_of_the_tag(zoo: Zoo, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip warns and takes the architecture's; the weights were trained with the tag's."""
    arch = "vit" if quick else "vit_quickgelu"  # named without, or with
    zoo.reference(arch)
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, f"small_{arch}", {"tag": {"hf_hub": "nobody/small/", "quick_gelu": quick}}
    )
    monkeypatch.setattr(open_clip, "download_pretrained", lambda known: str(zoo.file(arch)))
    monkeypatch.setattr("clipkit.models.hub._unreachable", lambda: None)
    encoder = open_clip_model(f"small_{arch}/tag")
    right, wrong = (
        open_clip.create_model(f"small_{name}", pretrained=str(zoo.file(arch))).eval()
        for name in (("vit_quickgelu", "vit") if quick else ("vit", "vit_quickgelu"))
    )
    pixels = pixels_of(encoder)
    found = outputs(encoder, pixels)
    assert_close(found, expected_outputs(right, "small_vit", pixels), atol=1e-5)
    for name, value in expected_outputs(wrong, "small_vit", pixels).items():
        assert (found[name] - value).abs().max() > 1e-3, name


def test_an_unknown_architecture_is_told_its_nearest() -> None:
    with pytest.raises(UserError, match=r"has no model ViT-B-23; nearest: .*ViT-B-32"):
        open_clip_model("ViT-B-23/openai")


@pytest.mark.parametrize("name", ["ViT-B-32/laion3b", "ViT-B-32", "ViT-B-32//no/such/file.safetensors"])
def test_an_unknown_tag_is_told_all_there_are(name: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-32")
    with pytest.raises(UserError, match=", ".join(tags)):
        open_clip_model(name)


def test_weights_of_another_architecture_are_named(zoo: Zoo) -> None:
    zoo.reference("resnet")
    with pytest.raises(UserError) as caught:
        open_clip_model(f"small_vit/{zoo.file('resnet')}")
    said = str(caught.value)
    assert "another architecture" in said
    assert "the file lacks" in said
    assert "visual." in said
    assert "resnet.safetensors" in said


def test_weights_of_another_width_are_named(zoo: Zoo) -> None:
    wide = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": {**TEXT, "width": 32}}
    (zoo.folder / "small_wide.json").write_text(json.dumps(wide))
    open_clip.add_model_config(zoo.folder)
    zoo.reference("vit")
    with pytest.raises(UserError, match=r"another architecture: of another shape: \d+ \(text\."):
        open_clip_model(f"small_wide/{zoo.file('vit')}")
    with pytest.raises(UserError, match=r"another architecture: the file lacks \d+ \(text\.transformer\.embeddings"):
        open_clip_model(f"small_roberta_mlp/{zoo.file('vit')}")


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(zoo: Zoo, tmp_path: Path) -> None:
    state = dict(zoo.reference("vit").state_dict())
    torch.save({**state, "surprise": Hostile(tmp_path / "was_here")}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"pickle that would run code .* refused"):
        open_clip_model(f"small_vit/{tmp_path / 'weights.pt'}")
    assert not (tmp_path / "was_here").exists()


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r'pip install "clipkit-train\[open-clip\]"'):
        clipkit.load("open_clip:ViT-B-32/openai")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """CLIP's own architecture, with random weights, and its file of 600 MB."""
    with uninitialized():
        model = open_clip.create_model("ViT-B-32-quickgelu")
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = block.repeat(value.numel() // len(block) + 1)[: value.numel()].view(value.shape)
            if value.ndim >= 2:
                value.copy_(noise * (0.02 if "embedding" in name else value[0].numel() ** -0.5))
            else:
                value.add_(0.05 * noise)
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    yield model.eval(), file
    file.unlink()


@pytest.mark.slow
def test_the_real_architecture_gives_what_open_clip_gives(
    real: tuple[Any, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reference, file = real
    encoder = open_clip_model(f"ViT-B-32-quickgelu/{file}")
    pixels = pixels_of(encoder)
    expected = expected_outputs(reference, "ViT-B-32-quickgelu", pixels)
    assert (expected["image"] @ expected["image"].T).min() < 0.99
    assert (expected["text"] @ expected["text"].T).min() < 0.99
    found = outputs(encoder, pixels)
    assert_close(found, expected, atol=1e-5)
    model = tmp_path / "model"
    request.addfinalizer(lambda: (model / "model.safetensors").unlink(missing_ok=True))
    save_model(Model(encoder), model)
    del encoder
    assert_close(outputs(load_model(model).encoder, pixels), found, atol=1e-6)
