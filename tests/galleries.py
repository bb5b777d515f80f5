"""A folder of pictures, and a small model that can be asked about them within a second."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipkit.models.bpe import corpus_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower

CLASSES = ("red", "green", "blue")


def small_model(folder: Path, *, classifier: bool = False, aligned: bool = True, seed: int = 0) -> Model:
    """Two tiny towers with weights from a seed, and a classifier of three classes if asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = corpus_tokenizer(["a red cat", "a blue dog"], cache_dir=folder, vocab_size=270)
        args = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
        image = TimmImageTower("vit_base_patch16_clip_224", image_size=32, model_args=args)
        text = CausalTextTower(width=32, layers=1, heads=2, mlp=64, tokenizer=str(tokenizer))
        encoder = DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=16), aligned=aligned)
        with torch.no_grad():  # so that pictures differ: a fresh tower gives nearly the same for all
            encoder.image.model.patch_embed.proj.weight.mul_(50)
            for block in encoder.image.model.blocks:
                block.attn.qkv.weight.mul_(20)
                block.attn.proj.weight.mul_(20)
        prototypes = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    own = ZeroShotClassifier(prototypes, class_names=CLASSES, logit_scale=torch.tensor(5.0)) if classifier else None
    return Model(encoder, own, ("a picture of {}", "{} in the snow"))


def draw_pictures(folder: Path, count: int = 12, *, first: int = 0) -> list[Path]:
    """Pictures that all differ, in two folders below `folder`; returned in the order of their names."""
    drawn = []
    for number in range(first, first + count):
        file = folder / ("one" if number % 2 else "two, and more") / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (2, 1, 3), np.uint8)
        Image.fromarray(pixels).resize((50, 40), Image.Resampling.NEAREST).save(file)
        drawn.append(file)
    return sorted(drawn)
