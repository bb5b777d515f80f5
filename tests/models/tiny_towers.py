"""Two tiny towers from scratch, and what shows that a norm was forgotten. Imported by the tests beside it."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower

TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def tiny_encoder(image: str = "test_efficientnet", text: dict[str, Any] = TINY_BERT, **options: Any) -> DualEncoder:
    """A dual encoder of a tiny timm model at 32 pixels and a tiny transformers encoder over bytes."""
    torch.manual_seed(0)
    return DualEncoder(
        TimmImageTower(image, image_size=32),
        TransformersTextTower(config=text),
        **{"projection": partial(LinearProjection, embed_dim=32), **options},
    )


def randomized(model: Any) -> Any:
    """Weights, statistics and scales that fresh norms and layer scales do not have, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, centre, 0.3, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


def random_pictures(size: int, count: int = 3) -> Tensor:
    """uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, of the parameters that have one; and then they have none."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found
