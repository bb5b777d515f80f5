"""The dual encoder: an image tower and a text tower that meet in one embedding space."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.models.image import TimmImageTower
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.text import TransformersTextTower

__all__ = ["DualEncoder"]

MAX_LOG_SCALE = math.log(100)
Projection = Callable[[int], nn.Module]  # from a feature width, one of `clipkit.models.projection`


class DualEncoder(nn.Module):
    """Two towers, two projections and a learned temperature (CLIP, arXiv 2103.00020).

    Its preprocessing and tokenizer travel with it: `preprocess`, `tokenize`. What is frozen stays in eval mode, also
    after `.train()`.

    Args:
        image: the image tower.
        text: the text tower.
        projection: called with each tower's feature width, makes its projection.
        text_dropout: dropout of the text projection where it differs from the image's.
        temperature: where the learned temperature starts; `logit_scale` is −ln of it, kept in [0, ln 100].
        aligned: the two towers have been trained together.
    """

    def __init__(
        self,
        image: TimmImageTower,
        text: TransformersTextTower,
        *,
        projection: Projection,
        text_dropout: float | None = None,
        temperature: float = 0.07,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.image_projection: Any = projection(image.feature_dim)
        self.text_projection: Any = projection(text.feature_dim)
        if text_dropout is not None:
            for module in self.text_projection.modules():
                if isinstance(module, nn.Dropout):
                    module.p = text_dropout
        self.text_dropout = text_dropout
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.aligned = aligned
        self.frozen_dtype: torch.dtype | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the shared embedding space."""
        return int(self.image_projection.arguments["embed_dim"])

    @property
    def feature_dim(self) -> int:
        """Width of the image feature before the projection."""
        return self.image.feature_dim

    @property
    def preprocess(self) -> ImagePreprocess:
        """PIL image -> uint8 [3, S, S]."""
        return self.image.preprocess

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts -> `input_ids` and `attention_mask` [M, L]."""
        return self.text.tokenize(texts)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S], uint8 or float 0–1 -> [B, D], rows of unit length."""
        return self.project_image(self.image_features(pixels))

    def encode_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, D], rows of unit length."""
        return self.project_text(self.text(tokens))

    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, F], before the projection, not normalised."""
        return self.tail(self.trunk(pixels, groups=0), groups=0)

    def trunk(self, pixels: Tensor, *, groups: int) -> dict[str, Tensor]:
        """The image tower's frozen half, without gradient, in `frozen_dtype` if one is set."""
        dtype = self.frozen_dtype
        with torch.no_grad(), torch.autocast(pixels.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return {name: value.float() for name, value in self.image.trunk(pixels, groups=groups).items()}

    def tail(self, state: dict[str, Tensor], *, groups: int) -> Tensor:
        """The image tower's last `groups` groups on what `trunk` returned -> [B, F]."""
        return self.image.tail(state, groups=groups)

    def project_image(self, features: Tensor) -> Tensor:
        """[B, F] image features -> [B, D], rows of unit length."""
        return normalize(self.image_projection(features).float(), dim=-1)

    def project_text(self, features: Tensor) -> Tensor:
        """[M, F] text features -> [M, D], rows of unit length."""
        return normalize(self.text_projection(features).float(), dim=-1)

    def clamp_logit_scale(self) -> None:
        """Keep the temperature's logarithm in [0, ln 100] (after each optimiser step)."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Training mode for what is trained; modules without a trained weight stay in eval mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
                keeps = isinstance(module, nn.modules.batchnorm._BatchNorm) and not self.image.update_batchnorm
                if frozen or keeps:
                    module.eval()
            if not any(p.requires_grad for p in self.image.model.parameters()):
                self.image.eval()
            if not any(p.requires_grad for p in self.text.model.parameters()):
                self.text.eval()
        return self

    def spec(self, *, towers: str = "inside") -> dict[str, Any]:
        """What rebuilds this encoder, as plain containers.

        Args:
            towers: "inside" if the weights file will hold the towers, "pretrained" if they are loaded as they were.
        """
        return {
            "image": {
                "_target_": "clipkit.models.image.TimmImageTower",
                **self.image.arguments,
                "pretrained": towers == "pretrained",
            },
            "text": {"_target_": "clipkit.models.text.TransformersTextTower", **self._text_spec(towers)},
            "projection": _projection_spec(self.image_projection),
            "text_dropout": self.text_dropout,
        }

    def _text_spec(self, towers: str) -> dict[str, Any]:
        arguments = dict(self.text.arguments)
        if towers == "pretrained":
            return {**arguments, "pretrained": True}
        config = self.text.model.config.to_diff_dict()
        drop = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
        config = {key: value for key, value in config.items() if key not in drop}
        model_type = self.text.model.config.model_type
        return {**arguments, "name": None, "config": {"model_type": model_type, **config}, "tokenizer": "tokenizer"}


def _projection_spec(projection: Any) -> dict[str, Any]:
    kind = type(projection)
    arguments: dict[str, Any] = projection.arguments
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", "_partial_": True, **arguments}
