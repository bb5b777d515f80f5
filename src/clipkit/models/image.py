"""Image towers: any timm model, with its pooled feature, optionally joined by those of earlier depths.

Run: python -m clipkit.train backbone.image.name=resnet50 backbone.image.pretrained=true
"""

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm

from clipkit.errors import UserError
from clipkit.models.hub import hub_access
from clipkit.models.offline_weights import offline_image_weights
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.timm_groups import add_attention_pool, merge_batchnorm, split
from clipkit.models.towers import ImageTower
from clipkit.models.weights import fill, read_weights

__all__ = ["TimmImageTower"]


class TimmImageTower(ImageTower):
    """A timm model as an image tower, in two halves: `trunk` (frozen) and `tail` (the last N groups).

    Args:
        name: a timm model name, with a tag if wanted ("resnet50.a1_in1k").
        pretrained: load its weights, from an installed package if one holds them, else from the model hub; or the
            path of a weights file (safetensors, or a pickle of tensors alone).
        image_size: side in pixels; null means the model's own.
        interpolate_positions: allow another image size than the pretrained model's own where it has position
            embeddings: they are interpolated (bicubic) when the weights are loaded.
        model_args: further arguments of the timm model ({patch_size: 14, depth: 6}), for towers from scratch.
        global_pool: another pooling than the model's own ("avg", "token", "map"), set when its classifier is removed.
        attention_pool: pool the last map by attention (CLIP's ResNets) instead of by the model's own pooling.
        pooled_stages: join the feature with the average-pooled outputs of this many last groups (0: none). Earlier
            depths see shapes and colours that the last one has learned to ignore.
        standardize: shift and scale each feature by the training set's mean and standard deviation, which are
            computed once before training and saved with the model.
        fold_batchnorm: merge each BatchNorm into its convolution when the tower is built.
        update_batchnorm: let BatchNorm in trained groups follow the data; null: only without pretrained weights.
        patch_dropout: share of each picture's patches that training leaves out, for vision transformers.
        crop_share: share of the resized picture that the tower sees.
        mean, std: pixel normalisation of RGB in 0–1; null means the model's own.
        preprocess: further arguments of `ImagePreprocess` (resize, interpolation).
        model: a timm model that is already in memory, without classifier; its weights are used.

    Raises:
        UserError: an unknown name, a size that the model cannot take, weights of another architecture.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str = False,
        image_size: int | None = None,
        interpolate_positions: bool = False,
        model_args: dict[str, Any] | None = None,
        global_pool: str | None = None,
        attention_pool: bool = False,
        pooled_stages: int = 0,
        standardize: bool = False,
        fold_batchnorm: bool = False,
        update_batchnorm: bool | None = None,
        patch_dropout: float = 0.0,
        crop_share: float = 1.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        preprocess: dict[str, Any] | None = None,
        model: Any = None,
    ) -> None:
        super().__init__()
        self.found_by_name = pretrained is True and model is None
        model_args = dict(model_args or {})
        size = _checked_size(name, image_size, interpolate=interpolate_positions or pretrained is not True)
        if model is None:
            model = _create(name, pretrained=pretrained, size=size, model_args=model_args)
            if isinstance(pretrained, str):
                _load(model, Path(pretrained).expanduser(), interpolate=interpolate_positions)
            if global_pool is not None:
                model.reset_classifier(0, global_pool)
        config: dict[str, Any] = timm.data.resolve_model_data_config(model)
        size = size or int(config["input_size"][-1])
        if pretrained:
            _check_patches(model, size)
        if attention_pool:
            add_attention_pool(model, size)
        if fold_batchnorm:
            merge_batchnorm(model, size)
        self.update_batchnorm = not pretrained if update_batchnorm is None else update_batchnorm
        self.pretrained = bool(pretrained)
        self.fixed_size = _is_fixed(name)
        mean, std = list(mean or config["mean"]), list(std or config["std"])
        self.arguments = {
            "name": name,
            "image_size": size,
            "interpolate_positions": interpolate_positions,
            "model_args": model_args,
            "global_pool": global_pool,
            "attention_pool": attention_pool,
            "pooled_stages": pooled_stages,
            "standardize": standardize,
            "fold_batchnorm": fold_batchnorm,
            "update_batchnorm": self.update_batchnorm,
            "crop_share": crop_share,
            "mean": mean,
            "std": std,
            "preprocess": preprocess,
        }
        groups = split(model)
        available = 0 if groups.pool is None else len(groups.groups)
        if pooled_stages > available:
            raise UserError(f"backbone.image.pooled_stages={pooled_stages}: {name} has {available} that can be pooled")
        try:
            self._assemble(
                model,
                split,
                preprocess=ImagePreprocess(size, crop_share, **(preprocess or {})),
                mean=mean,
                std=std,
                standardize=standardize,
                pooled_stages=pooled_stages,
            )
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"{name} cannot take pictures of {size}×{size} pixels: {error}") from error
        self.drop_patches(patch_dropout)


def _is_fixed(name: str) -> bool:
    """Whether the model takes one size of pictures, decided when it is built (position embeddings, windows)."""
    config = timm.get_pretrained_cfg(name.split(".")[0])
    return bool(config is not None and config.fixed_input_size)


def _checked_size(name: str, image_size: int | None, *, interpolate: bool) -> int | None:
    """The side to build for; None: the model's own."""
    if not timm.is_model(name):
        tagged = name.split(".")[0]
        near = get_close_matches(tagged, timm.list_models(), n=3)
        raise UserError(f"backbone.image.name={name}: timm has no such model; nearest: {', '.join(near) or 'none'}")
    if "." in name and name not in timm.list_pretrained(f"{name.split('.')[0]}.*"):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise UserError(f"backbone.image.name={name}: timm has no such weights; it has {tags or 'none for it'}")
    if image_size is None:
        return None
    config = timm.get_pretrained_cfg(name)
    own = int(config.input_size[-1]) if config is not None else image_size
    if _is_fixed(name) and image_size != own and not interpolate:
        raise UserError(
            f"backbone.image.image_size={image_size}: {name} was trained at {own} and has position embeddings for that "
            "size; use image_size=null, or backbone.image.interpolate_positions=true to interpolate them"
        )
    return image_size


def _check_patches(model: Any, size: int) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None and size % patch[0]:
        below = size // patch[0] * patch[0]
        near = " or ".join(str(side) for side in (below, below + patch[0]) if side > 0)
        raise UserError(
            f"backbone.image.image_size={size} is no multiple of the model's patch size {patch[0]}: use {near}"
        )


def _create(name: str, *, pretrained: bool | str, size: int | None, model_args: dict[str, Any]) -> Any:
    """The timm model without its classifier."""

    def create(load: bool) -> Any:
        sized = {"img_size": size} if size is not None and _is_fixed(name) else {}
        try:
            return timm.create_model(name, pretrained=load, **sized, **model_args)
        except (TypeError, AssertionError, ValueError) as error:
            given = {**sized, **model_args}
            raise UserError(f"backbone.image: timm cannot build {name} with {given}: {error}") from error

    plain = create(False)
    offline = offline_image_weights(name, plain.state_dict()) if pretrained is True else None
    if offline is not None:
        plain.load_state_dict(offline)
    elif pretrained is True:
        config = timm.get_pretrained_cfg(name)
        repository = (config.hf_hub_id if config is not None else None) or f"timm/{name}"
        with hub_access(repository, key="backbone.image.name"):
            plain = create(True)
    plain.reset_classifier(0)
    return plain


def _load(model: Any, file: Path, *, interpolate: bool) -> None:
    """Weights from a file, as timm would read them: renamed, position embeddings interpolated, without classifier."""
    state = read_weights(file)
    positions = state.get("pos_embed")
    own = getattr(model, "pos_embed", None)
    if positions is not None and own is not None and positions.shape[1] != own.shape[1] and not interpolate:
        raise UserError(
            f"{file} has {positions.shape[1]} position embeddings and the model {own.shape[1]}: it was trained at "
            "another image size. Use that as backbone.image.image_size, or set "
            "backbone.image.interpolate_positions=true"
        )
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, model)
    classifiers = model.pretrained_cfg.get("classifier") or ()
    for classifier in [classifiers] if isinstance(classifiers, str) else classifiers:
        state = {name: value for name, value in state.items() if not name.startswith(f"{classifier}.")}
    fill(model, state, source=file)
