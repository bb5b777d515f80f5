"""Small CLIP and SigLIP folders with random weights that tell inputs apart, odd pictures, and what splits must keep."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.tokenizers import clip_tokenizer

__all__ = [
    "assert_splits_to_the_bit",
    "clip_folder",
    "clip_model",
    "enliven",
    "odd_pictures",
    "sentencepiece_folder",
    "siglip_folder",
    "siglip_model",
]

SIDE = 32
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}


def enliven(model: nn.Module, *, seed: int = 0) -> Any:
    """Weights large enough that two inputs get plainly different outputs: fresh ones hardly tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim < 2:
                if not name.startswith("logit_"):
                    value.add_(0.2 * noise)
            elif "embedding" in name:
                value.copy_(0.5 * noise)
            else:
                value.copy_(1.5 * noise / value[0].numel() ** 0.5)
        for name, value in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return model.eval()


def clip_model(*, activation: str = "quick_gelu", eos_token_id: int = 49_407, scale: float = 3.0) -> Any:
    """A CLIPModel; `eos_token_id` 2 pools as the first CLIPs of the hub do, at the largest id."""
    ids = {"vocab_size": 49_408, "eos_token_id": eos_token_id, "bos_token_id": 49_406, "pad_token_id": 49_407}
    config = transformers.CLIPConfig(
        vision_config={**VISION, "hidden_act": activation},
        text_config={**TEXT, **ids, "hidden_act": activation},
        projection_dim=16,
    )
    model = enliven(transformers.CLIPModel(config))
    model.logit_scale.data.fill_(scale)
    return model


def clip_folder(folder: Path, **options: Any) -> Path:
    """A CLIPModel with CLIP's tokenizer and image processor."""
    clip_model(**options).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    return folder


def siglip_model(*, vocab_size: int = 200, activation: str = "gelu_pytorch_tanh") -> Any:
    ids = {"vocab_size": vocab_size, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 1}
    config = transformers.SiglipConfig(
        vision_config={**VISION, "hidden_act": activation},
        text_config={**TEXT, **ids, "projection_size": 32, "max_position_embeddings": 16, "hidden_act": activation},
    )
    model = enliven(transformers.SiglipModel(config), seed=1)
    model.logit_scale.data.fill_(2.5)
    model.logit_bias.data.fill_(-3.7)
    return model


def siglip_folder(folder: Path, **options: Any) -> Path:
    """A SiglipModel with a sentencepiece tokenizer of its own and SigLIP's image processor."""
    siglip_model(**options).save_pretrained(folder)
    sentencepiece_folder(folder)
    transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def sentencepiece_folder(folder: Path) -> Path:
    """A SigLIP tokenizer of 200 pieces, whose end token pads."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "a an the photo of cat dog red green circle square two three on under in mat tree rain house 猫 犬 é ü"
    lines = [f"{first} {second}" for first in words.split() for second in words.split()]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        vocab_size=200,
        hard_vocab_limit=False,
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16).save_pretrained(folder)
    return folder


def odd_pictures() -> list[Image.Image]:
    """Noise (where every pixel counts) of many shapes and modes."""
    draw = np.random.default_rng(0)
    sizes = [(37, 53), (53, 37), (32, 32), (33, 32), (32, 35), (65, 64), (301, 17), (17, 301), (5, 5), (1, 9), (97, 97)]
    noise = [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
    others = [noise[0].convert("L"), noise[1].convert("RGBA"), noise[5].convert("P"), noise[6].convert("1")]
    return [*noise, *others]


def assert_splits_to_the_bit(encoder: DualEncoder, pixels: Tensor, tokens: dict[str, Tensor]) -> None:
    """Every cut of both towers gives the whole; the trunk rests on its own groups alone, the tail on the others."""
    towers: list[Any] = [(encoder.image, pixels), (encoder.text, tokens)]
    for tower, inputs in towers:
        whole, layers = tower(inputs), tower.group_modules(tower.num_groups)[: tower.num_groups]
        assert len(layers) == tower.num_groups > 0
        for groups in range(tower.num_groups + 1):
            cut = tower.num_groups - groups
            for end in (False, True):
                state = tower.trunk(inputs, groups=groups, end=end)
                assert ("feature" in state) == (groups == 0 and not end)
                assert _used(layers, state) == list(range(cut)), (type(tower).__name__, groups, end)
                found = tower.tail({name: value.detach() for name, value in state.items()}, groups=groups)
                assert torch.equal(found, whole), (type(tower).__name__, groups, end)
                assert _used(layers, {"feature": found}) == list(range(cut, tower.num_groups))


def _used(layers: list[nn.Module], outputs: dict[str, Tensor]) -> list[int]:
    """Which layers' weights these outputs were computed from."""
    total = sum(value.sum() for value in outputs.values() if value.requires_grad)
    if not isinstance(total, Tensor):
        return []
    found = []
    for index, layer in enumerate(layers):
        gradients = torch.autograd.grad(total, list(layer.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in gradients):
            found.append(index)
    return found
