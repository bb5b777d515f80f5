"""The dual encoder: an image tower and a text tower that meet in one embedding space."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit.errors import UserError
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.towers import ImageTower, TextTower, Towers

__all__ = ["DualEncoder"]

Projection = Callable[[int], nn.Module]  # from a feature width, one of `clipkit.models.projection`


class DualEncoder(nn.Module):
    """Two towers, two projections and a learned temperature (CLIP, arXiv 2103.00020).

    Its preprocessing and tokenizer travel with it: `preprocess`, `tokenize`. What is frozen stays in eval mode, also
    after `.train()`.

    Args:
        image: the image tower.
        text: the text tower.
        projection: called with each tower's feature width, makes its projection.
        text_projection: makes the text tower's, where it is of another kind.
        text_dropout: dropout of the text projection where it differs from the image's.
        temperature: where the learned temperature starts; `logit_scale` is −ln of it.
        max_logit_scale: largest exp(`logit_scale`) after a training step; null: no limit. The smallest is 1.
        logit_bias: added to every logit (the sigmoid loss of SigLIP learns it); null: none.
        aligned: the two towers have been trained together.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        *,
        projection: Projection,
        text_projection: Projection | None = None,
        text_dropout: float | None = None,
        temperature: float = 0.07,
        max_logit_scale: float | None = 100.0,
        logit_bias: float | None = None,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.image_projection: Any = projection(image.feature_dim)
        self.text_projection: Any = (text_projection or projection)(text.feature_dim)
        if self.image_projection.embed_dim != self.text_projection.embed_dim:
            raise UserError(
                f"the projections do not meet in one space: {self.image_projection.embed_dim} dimensions for pictures, "
                f"{self.text_projection.embed_dim} for texts"
            )
        if text_dropout is not None:
            for module in self.text_projection.modules():
                if isinstance(module, nn.Dropout):
                    module.p = text_dropout
        self.text_dropout, self.max_logit_scale = text_dropout, max_logit_scale
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.aligned = aligned
        self.frozen_dtype: torch.dtype | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the shared embedding space."""
        return int(self.image_projection.embed_dim)

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

    def trunk(self, pixels: Tensor, *, groups: int, end: bool = False) -> dict[str, Tensor]:
        """The image tower's frozen half, without gradient, in `frozen_dtype` if one is set."""
        with torch.no_grad(), self._frozen_precision(pixels.device):
            return {name: _exact(value) for name, value in self.image.trunk(pixels, groups=groups, end=end).items()}

    def tail(self, state: dict[str, Tensor], *, groups: int) -> Tensor:
        """The image tower's last `groups` groups on what `trunk` returned -> [B, F]."""
        return self.image.tail(state, groups=groups)

    def text_trunk(self, tokens: dict[str, Tensor], *, groups: int, end: bool = False) -> dict[str, Tensor]:
        """The text tower's frozen half, without gradient."""
        with torch.no_grad():
            return self.text.trunk(tokens, groups=groups, end=end)

    def text_tail(self, state: dict[str, Tensor], *, groups: int) -> Tensor:
        """The text tower's last `groups` groups on what `text_trunk` returned -> [M, F]."""
        return self.text.tail(state, groups=groups)

    def _frozen_precision(self, device: torch.device) -> torch.autocast:
        dtype = self.frozen_dtype
        return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def project_image(self, features: Tensor) -> Tensor:
        """[B, F] image features -> [B, D], rows of unit length."""
        return normalize(_exact(self.image_projection(features)), dim=-1)

    def project_text(self, features: Tensor) -> Tensor:
        """[M, F] text features -> [M, D], rows of unit length."""
        return normalize(_exact(self.text_projection(features)), dim=-1)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """[B, D] and [M, D], rows of unit length -> scaled cosines [B, M], plus the bias if the model has one."""
        logits = self.logit_scale.exp() * image_embeds @ text_embeds.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def clamp_logit_scale(self) -> None:
        """Keep exp(`logit_scale`) in 1 … `max_logit_scale` (after each optimiser step)."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, None if self.max_logit_scale is None else math.log(self.max_logit_scale))

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

    def spec(self, *, towers: Towers = "inside") -> dict[str, Any]:
        """What rebuilds this encoder, as plain containers.

        Args:
            towers: "inside" if the weights file will hold the towers, "pretrained" if they are loaded as they were.
        """
        return {
            "image": self.image.spec(towers),
            "text": self.text.spec(towers),
            "projection": _projection_spec(self.image_projection),
            "text_projection": _projection_spec(self.text_projection),
            "text_dropout": self.text_dropout,
            "max_logit_scale": self.max_logit_scale,
            "logit_bias": None if self.logit_bias is None else 0.0,
        }


def _exact(value: Tensor) -> Tensor:
    """In float32 where it was computed in half precision; float64 stays."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _projection_spec(projection: Any) -> dict[str, Any]:
    kind = type(projection)
    arguments: dict[str, Any] = projection.arguments
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", "_partial_": True, **arguments}
