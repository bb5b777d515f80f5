"""Models for transformers alone: the same numbers from its own classes, tokenizer and processor."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPConfig, CLIPModel

from clipkit.errors import UserError
from clipkit.models.bpe import corpus_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.projection import LinearProjection, ResidualMLPProjection
from clipkit.models.text import TransformersTextTower
from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.to_transformers import to_transformers
from clipkit.models.tokenizers import clip_tokenizer
from clipkit.models.transformers_clip import transformers_clip
from clipkit.runs.export import export

TEXTS = ["A cat on a mat", "a dog in a park " * 40, "🐈 猫"]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
BERT = {"model_type": "bert", "vocab_size": 259, "max_position_embeddings": 128, "pad_token_id": 0, **SMALL}


def pair(image: Any, text: Any, projection: Any = LinearProjection) -> DualEncoder:
    return DualEncoder(image, text, projection=partial(projection, embed_dim=32)).eval()


def from_scratch(folder: Path, **text: Any) -> DualEncoder:
    tokenizer = corpus_tokenizer(["a cat on a mat", "a dog in a park"] * 5, cache_dir=folder, vocab_size=300)
    return pair(
        TimmImageTower("vit_base_patch16_clip_224", image_size=32, model_args=VIT),
        CausalTextTower(width=64, layers=2, mlp=128, tokenizer=str(tokenizer), max_length=16, **({"heads": 4} | text)),
    )


def of_open_clip(folder: Path, *, quick_gelu: bool) -> DualEncoder:
    name = f"clipkit-export-{quick_gelu}"
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49_408, "width": 64, "heads": 4, "layers": 2}
    config = {"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    open_clip.factory._MODEL_CONFIGS[name] = config
    return open_clip_model(name, pretrained=False)


def of_transformers(folder: Path) -> DualEncoder:
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    text = {**SMALL, "vocab_size": 49_408, "eos_token_id": 49_407, "bos_token_id": 49_406}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder / "clip")
    clip_tokenizer().save_pretrained(folder / "clip")
    return transformers_clip(str(folder / "clip"))


def two_towers(folder: Path) -> DualEncoder:
    image = TimmImageTower(
        "swin_tiny_patch4_window7_224", image_size=32, model_args={"embed_dim": 16, "window_size": 4}
    )
    return pair(image, TransformersTextTower(config=BERT, pooling="pooler", tokenizer="bytes"))


MODELS = {
    "from scratch": (from_scratch, "CLIPModel"),
    "open_clip": (partial(of_open_clip, quick_gelu=False), "CLIPModel"),
    "open_clip, QuickGELU": (partial(of_open_clip, quick_gelu=True), "CLIPModel"),
    "transformers": (of_transformers, "CLIPModel"),
    "swin and bert": (two_towers, "VisionTextDualEncoderModel"),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_saved_and_exported_model_computes_the_same_in_transformers_alone(name: str, tmp_path: Path) -> None:
    make, kind = MODELS[name]
    torch.manual_seed(0)
    encoder = make(tmp_path)
    encoder.logit_scale.fill_(3.25)
    save_model(Model(encoder, None, ("{}",)), tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert export(ours, tmp_path / "theirs", "transformers")[0] == kind

    theirs = AutoModel.from_pretrained(tmp_path / "theirs").eval()
    assert type(theirs).__name__ == kind
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs", backend="pil")
    side = encoder.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (side + 8, side, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    words = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    found = theirs(**words, **processor(picture, return_tensors="pt"))
    image, text = ours.encode_image(picture), ours.encode_text(TEXTS)
    torch.testing.assert_close(found.image_embeds, image, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, text, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.logits_per_image, ours.encoder.logits(image, text), atol=1e-5, rtol=0)


def test_the_export_does_not_share_weights_with_the_model(tmp_path: Path) -> None:
    encoder = of_transformers(tmp_path)
    before = encoder.image_projection.linear.weight.clone()
    exported = to_transformers(encoder).model
    with torch.no_grad():
        exported.visual_projection.weight.zero_()
    assert torch.equal(encoder.image_projection.linear.weight, before)


def bert(**options: Any) -> TransformersTextTower:
    return TransformersTextTower(config=BERT, tokenizer="bytes", **({"pooling": "pooler"} | options))


REFUSED = {
    "mean of the tokens": (lambda: pair(TimmImageTower("test_vit"), bert(pooling="mean")), "pooler"),
    "mlp": (lambda: pair(TimmImageTower("test_vit"), bert(), ResidualMLPProjection), "ResidualMLPProjection"),
    "bias": (lambda: pair(TimmImageTower("test_vit"), bert(), partial(LinearProjection, bias=True)), "bias"),
    "joined depths": (lambda: pair(TimmImageTower("test_resnet", pooled_stages=2), bert()), "pooled_stages=2"),
    "standardised": (lambda: pair(TimmImageTower("test_resnet", standardize=True), bert()), "standardize=true"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_without_a_counterpart_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        export(Model(make(), None, ("{}",)), tmp_path, "transformers")
    assert list(tmp_path.iterdir()) == []


def test_a_text_tower_whose_end_token_transformers_misreads_is_refused(tmp_path: Path) -> None:
    encoder = from_scratch(tmp_path)
    encoder.text.tokenizer.tokenizer.eos_token = encoder.text.tokenizer.tokenizer.convert_ids_to_tokens(2)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="end token has the number 2"):
        to_transformers(encoder)
