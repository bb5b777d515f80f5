"""Image towers: any timm model, with its pooled feature, optionally joined by those of earlier depths.

Run: python -m clipkit.train backbone.image.name=resnet50 backbone.image.pretrained=true
"""

import contextlib
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.hub import hub_access
from clipkit.models.offline_weights import offline_image_weights
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.standardize import Standardize
from clipkit.models.timm_groups import merge_batchnorm, split

__all__ = ["TimmImageTower"]


class TimmImageTower(nn.Module):
    """A timm model as an image tower, in two halves: `trunk` (frozen) and `tail` (the last N groups).

    Args:
        name: a timm model name, with a tag if wanted ("resnet50.a1_in1k").
        pretrained: load its weights, from an installed package if one holds them, else from the model hub.
        image_size: side in pixels; null means the model's own.
        pooled_stages: join the feature with the average-pooled outputs of this many last groups (0: none). Earlier
            depths see shapes and colours that the last one has learned to ignore.
        standardize: shift and scale each feature by the training set's mean and standard deviation, which are
            computed once before training and saved with the model.
        fold_batchnorm: merge each BatchNorm into its convolution when the tower is built.
        update_batchnorm: let BatchNorm in trained groups follow the data; null: only without pretrained weights.
        mean, std: pixel normalisation of RGB in 0–1; null means the model's own.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        image_size: int | None = None,
        pooled_stages: int = 0,
        standardize: bool = False,
        fold_batchnorm: bool = False,
        update_batchnorm: bool | None = None,
        crop_share: float = 1.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.model, data_config = _create(name, pretrained=pretrained, image_size=image_size)
        size = int(image_size or data_config["input_size"][-1])
        if fold_batchnorm:
            merge_batchnorm(self.model, size)
        if any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in self.model.modules()):
            self.model.to(memory_format=torch.channels_last)
        self.preprocess = ImagePreprocess(size, crop_share)
        self.update_batchnorm = not pretrained if update_batchnorm is None else update_batchnorm
        mean = list(mean or data_config["mean"])
        std = list(std or data_config["std"])
        self.arguments: dict[str, Any] = {
            "name": name,
            "image_size": size,
            "pooled_stages": pooled_stages,
            "standardize": standardize,
            "fold_batchnorm": fold_batchnorm,
            "update_batchnorm": self.update_batchnorm,
            "crop_share": crop_share,
            "mean": mean,
            "std": std,
        }
        self.pretrained = pretrained
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._cuts = split(self.model)
        self.num_groups = len(self._cuts.groups)
        if pooled_stages > (0 if self._cuts.pool is None else self.num_groups):
            available = 0 if self._cuts.pool is None else self.num_groups
            raise UserError(f"backbone.image.pooled_stages={pooled_stages}: {name} has {available} that can be pooled")
        self.pooled_stages = pooled_stages
        self.feature_dim = self._measure(size)
        self.standardize = Standardize(self.feature_dim) if standardize else None

    mean: Tensor
    std: Tensor

    def trunk(self, pixels: Tensor, *, groups: int) -> dict[str, Tensor]:
        """The frozen half: everything before the last `groups` groups.

        Args:
            pixels: [B, 3, S, S], uint8 0–255 or float 0–1.
            groups: how many last groups belong to the tail, 0 … `num_groups`.

        Returns:
            What `tail` needs: the running map and the outputs pooled so far; with `groups=0` the raw feature [B, F].
        """
        x = self._cuts.stem(self.normalize(pixels))
        state = {"map": x}
        self._advance(state, 0, self.num_groups - groups)
        return {"feature": self._finish(state)} if groups == 0 else state

    def tail(self, state: dict[str, Tensor], *, groups: int) -> Tensor:
        """The trained half: [B, F] features from what `trunk` left, standardised if the tower does so."""
        if "feature" not in state:
            state = dict(state)
            self._advance(state, self.num_groups - groups, self.num_groups)
            state = {"feature": self._finish(state)}
        feature = state["feature"]
        return feature if self.standardize is None else cast(Tensor, self.standardize(feature))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 or float 0–1 -> [B, F] features, not normalised."""
        return self.tail(self.trunk(pixels, groups=0), groups=0)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 0–255 or float 0–1 -> float with the tower's mean and standard deviation removed."""
        if not pixels.is_floating_point():
            pixels = pixels.float() / 255
        normalized = (pixels - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)

    def group_modules(self, last: int) -> list[nn.Module]:
        """The modules of the last `last` groups; what follows them (final convolution, norm) is trained with them."""
        if last == 0:
            return []
        return [*self._cuts.groups[self.num_groups - last :], *self._cuts.end_modules]

    def _advance(self, state: dict[str, Tensor], start: int, stop: int) -> None:
        """Run groups start … stop − 1 on `state`, in place, pooling those that the feature joins."""
        for index in range(start, stop):
            state["map"] = self._cuts.groups[index](state["map"])
            if index >= self.num_groups - self.pooled_stages:
                assert self._cuts.pool is not None
                pooled = self._cuts.pool(state["map"])
                state["pooled"] = torch.cat([pooled, state["pooled"]], 1) if "pooled" in state else pooled

    def _finish(self, state: dict[str, Tensor]) -> Tensor:
        feature = self._cuts.end(state["map"])
        return torch.cat([feature, state["pooled"]], 1) if "pooled" in state else feature

    def _measure(self, size: int) -> int:
        was_training = self.training
        with torch.no_grad():
            width = self.eval().trunk(torch.zeros(1, 3, size, size), groups=0)["feature"].shape[1]
        self.train(was_training)
        return int(width)


def _create(name: str, *, pretrained: bool, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model without its classifier, and its own input size, mean and standard deviation."""
    if not timm.is_model(name):
        from difflib import get_close_matches

        near = get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise UserError(f"backbone.image.name={name}: timm has no such model; nearest: {', '.join(near) or 'none'}")

    def create(load: bool) -> Any:
        model = None
        if image_size is not None:
            with contextlib.suppress(TypeError):  # only fixed-size families (ViT, Swin) take img_size
                model = timm.create_model(name, pretrained=load, img_size=image_size)
        return timm.create_model(name, pretrained=load) if model is None else model

    plain = create(False)
    offline = offline_image_weights(name, plain.state_dict()) if pretrained else None
    if offline is not None:
        plain.load_state_dict(offline)
    elif pretrained:
        repository = timm.get_pretrained_cfg(name).hf_hub_id or f"timm/{name}"
        with hub_access(repository, key="backbone.image.name"):
            plain = create(True)
    plain.reset_classifier(0)
    return plain, timm.data.resolve_model_data_config(plain)
