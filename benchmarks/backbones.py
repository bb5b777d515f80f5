"""The table of backbones in docs/backbones.md: parameters, arithmetic, sizes, licences.

Run: python -m benchmarks.backbones        (prints the table; no weights are needed, half a minute)
"""

from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.offline_weights import known_text_config
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.tokenizers import TransformersTokenizer
from clipkit.models.weights import uninitialized
from clipkit.runs.build import build_encoder
from clipkit.runs.choices import named_backbones
from clipkit.runs.compose import compose_config

# Weights of text models and whole CLIPs, as their model cards say.
LICENCES = {
    "distilbert-base-uncased": "Apache-2.0",
    "distilroberta-base": "Apache-2.0",
    "all-MiniLM-L6-v2": "Apache-2.0",
}
WHOLE = {
    "hf_clip openai/clip-vit-base-patch32": ("ViT-B-32-quickgelu", "MIT"),
    "hf_clip openai/clip-vit-base-patch16": ("ViT-B-16-quickgelu", "MIT"),
    "hf_clip openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "MIT"),
    "open_clip ViT-B-32/laion2b_s34b_b79k": ("ViT-B-32", "MIT"),
    "open_clip RN50/openai": ("RN50-quickgelu", "MIT"),
    "open_clip convnext_base_w/laion2b_s13b_b82k": ("convnext_base_w", "MIT"),
}


def main() -> None:
    """Print one row a backbone."""
    print("| backbone | pixels | embedding | image: M parameters | GFLOPs | text: M parameters | GFLOPs | licence |")
    print("|---|---|---|---|---|---|---|---|")
    for name in named_backbones():
        if name != "tiny":
            row(f"`{name}`", *named(name))
    for title, (arch, licence) in WHOLE.items():
        backbone, _, model = title.partition(" ")
        with uninitialized():
            row(f"`{backbone}` `{model}`", open_clip_model(arch, pretrained=False), licence)


def named(name: str) -> tuple[DualEncoder, str]:
    """A named backbone with random weights, and the licences of its pretrained ones."""
    config = compose_config("train", [f"backbone={name}"])
    if name == "emoji_clip":
        return build_encoder(config), "Apache-2.0"
    image, text = config.backbone.image, config.backbone.text
    licences = "none: from scratch"
    if image.pretrained:
        found = timm.get_pretrained_cfg(image.name)
        of_image = {"apache-2.0": "Apache-2.0", "mit": "MIT"}[found.license or "apache-2.0"]
        licences = f"{of_image} / {LICENCES[text.name.split('/')[-1]]}"
        image.pretrained = False
        text.config = known_text_config(text.name)
        text.name, text.tokenizer = None, "bytes"
    elif text.get("tokenizer") is None:
        text.tokenizer = "bytes"  # in place of the 20,000 tokens of a trained vocabulary
    with uninitialized():
        encoder = build_encoder(config)
    return encoder, licences


def row(title: str, encoder: DualEncoder, licence: str) -> None:
    """Print one row; a text has 16 tokens, and a vocabulary that depends on the data counts as 20,000."""
    encoder.eval()
    size = encoder.preprocess.size
    pixels = torch.zeros(1, 3, size, size)
    tokens = {"input_ids": torch.ones(1, 16, dtype=torch.long), "attention_mask": torch.ones(1, 16, dtype=torch.long)}
    image = millions(encoder.image) + millions(encoder.image_projection)
    text = millions(encoder.text) + millions(encoder.text_projection)
    embedding = getattr(encoder.text.model, "token_embedding", None)
    if isinstance(encoder.text.tokenizer, TransformersTokenizer) and embedding is not None:
        text += (20_000 - len(byte_tokenizer(8))) * embedding.embedding_dim / 1e6
    cells: list[Any] = [title, size, encoder.embed_dim, f"{image:.1f}", f"{flops(encoder.encode_image, pixels):.2f}"]
    cells += [f"{text:.1f}", f"{flops(encoder.encode_text, tokens):.2f}", licence]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def millions(module: torch.nn.Module) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def flops(encode: Any, inputs: Any) -> float:
    """Floating-point operations of one call in 1e9; a multiplication with its addition counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(inputs)
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
