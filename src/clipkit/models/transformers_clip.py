"""Whole CLIP and SigLIP models of the transformers library, as one dual encoder.

Run: python -m clipkit.train backbone=hf_clip backbone.name=openai/clip-vit-base-patch32
"""

import pickle
import struct
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.hub import hub_access
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.projection import IdentityProjection, LinearProjection
from clipkit.models.text import TransformersTextTower, build_config, plain_config
from clipkit.models.timm_groups import Groups
from clipkit.models.tokenizers import TransformersTokenizer, named_tokenizer
from clipkit.models.towers import ImageTower, Towers

__all__ = ["TransformersImageTower", "transformers_clip"]

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class TransformersImageTower(ImageTower):
    """The vision transformer of a CLIP or SigLIP of transformers. Its groups are the transformer's layers.

    Args:
        config: its configuration as a mapping (with `model_type`).
        name: the whole model's name or folder, where `pretrained` loads the weights from.
        pretrained: load the weights.
        image_size: side in pixels, of which `config` may hold another: position embeddings are then interpolated.
        preprocess: arguments of `ImagePreprocess`, without the size.
        mean, std: pixel normalisation of RGB in 0–1.
        standardize: shift and scale each feature by the training set's mean and standard deviation.
        model: a vision model that is already in memory; its weights are used.
    """

    def __init__(
        self,
        config: dict[str, Any],
        *,
        name: str | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        preprocess: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        standardize: bool = False,
        model: Any = None,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        if model is None and pretrained:
            assert name is not None
            model = _load(name)[0].vision_model
        elif model is None:
            model = AutoModel.from_config(build_config(config), dtype=torch.float32)
        if image_size is not None and image_size != model.config.image_size:
            _resize_positions(model, image_size)
        size = int(model.config.image_size)
        mean, std = list(mean or CLIP_MEAN), list(std or CLIP_STD)
        self.pretrained, self.found_by_name = pretrained, pretrained and name is not None
        self.arguments = {
            "config": plain_config(model.config),
            "name": name,
            "image_size": size,
            "preprocess": preprocess,
            "mean": mean,
            "std": std,
            "standardize": standardize,
        }
        square = ImagePreprocess(size, **(preprocess or {}))
        self._assemble(model, _groups, preprocess=square, mean=mean, std=std, standardize=standardize)

    def spec(self, towers: Towers) -> dict[str, Any]:
        return super().spec(towers) | ({"name": None} if towers == "inside" else {})


def _groups(model: Any) -> Groups:
    def layer(module: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = module(x, attention_mask=None)
        return output

    if model.config.model_type.startswith("clip"):
        return Groups(
            stem=lambda x: model.pre_layrnorm(model.embeddings(x)),
            groups=list(model.encoder.layers),
            end=lambda x: model.post_layernorm(x[:, 0]),
            end_modules=[model.post_layernorm],
            pool=lambda x: x.mean(1),
            run=layer,
            first_patch=1,
        )
    return Groups(
        stem=lambda x: model.embeddings(x),
        groups=list(model.encoder.layers),
        end=lambda x: model.head(model.post_layernorm(x)),
        end_modules=[model.post_layernorm, model.head],
        pool=lambda x: x.mean(1),
        run=layer,
        first_patch=0,
    )


def _resize_positions(model: Any, image_size: int) -> None:
    """Interpolate the position embeddings (bicubic, antialiased) for another image size, in place."""
    patch = model.config.patch_size
    if image_size % patch:
        below = image_size // patch * patch
        raise UserError(
            f"backbone.image_size={image_size} is no multiple of the model's patch size {patch}: "
            f"use {below} or {below + patch}"
        )
    embeddings, grid = model.embeddings, image_size // patch
    prefix = embeddings.position_embedding.num_embeddings - embeddings.num_patches
    old = embeddings.position_embedding.weight.detach()[None]
    new = timm.layers.resample_abs_pos_embed(old, new_size=[grid, grid], num_prefix_tokens=prefix)[0]
    embeddings.position_embedding = nn.Embedding(new.shape[0], new.shape[1], _weight=new)
    embeddings.num_patches, embeddings.num_positions = grid**2, len(new)
    embeddings.position_ids = torch.arange(len(new))[None]
    embeddings.image_size = model.config.image_size = image_size


def transformers_clip(
    name: str,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    interpolate_positions: bool = False,
    tokenizer: str | None = None,
    patch_dropout: float = 0.0,
) -> DualEncoder:
    """A `CLIPModel` or `SiglipModel` as a dual encoder, with its tokenizer, preprocessing, activation and temperature.

    Args:
        name: a hub name or a local folder.
        pretrained: load the weights; false keeps the architecture with fresh ones.
        image_size: another side than the model's own; needs `interpolate_positions`.
        interpolate_positions: allow that, interpolating the position embeddings.
        tokenizer: a name or folder, if not the model's own.
        patch_dropout: share of each picture's patches that training leaves out.

    Raises:
        UserError: it is another kind of model, incomplete, or cannot be reached.
    """
    model, settings = _load(name, pretrained=pretrained)
    text_config, own = model.config.text_config, int(model.config.vision_config.image_size)
    if image_size not in (None, own) and not interpolate_positions:
        raise UserError(
            f"backbone.image_size={image_size}: {name} was trained at {own} and has position embeddings for that size; "
            "use image_size=null, or backbone.interpolate_positions=true to interpolate them"
        )
    length = int(text_config.max_position_embeddings)
    fixed = model.config.model_type == "siglip"
    tokens = TransformersTokenizer(named_tokenizer(tokenizer or name, length), length, fixed=fixed)
    vision = model.vision_model
    image = TransformersImageTower(
        plain_config(vision.config), name=name, pretrained=pretrained, image_size=image_size, model=vision, **settings
    )
    image.drop_patches(patch_dropout)
    text = TransformersTextTower(
        name, pretrained=pretrained, tokenizer=tokens, pooling="pooler", max_length=length, model=model.text_model
    )
    width = int(model.config.projection_dim) if model.config.model_type == "clip" else 0
    encoder = DualEncoder(
        image,
        text,
        projection=partial(LinearProjection, embed_dim=width) if width else IdentityProjection,
        max_logit_scale=100.0 if width else None,  # SigLIP's own is 117, and never was limited
        logit_bias=None if width else 0.0,
        aligned=pretrained,
    )
    with torch.no_grad():
        encoder.logit_scale.copy_(model.logit_scale.reshape(()))
        if encoder.logit_bias is not None:
            encoder.logit_bias.copy_(model.logit_bias.reshape(()))
        if width:
            encoder.image_projection.linear.weight = model.visual_projection.weight
            encoder.text_projection.linear.weight = model.text_projection.weight
    return encoder.eval()


def _load(name: str, *, pretrained: bool = True) -> tuple[Any, dict[str, Any]]:
    """The whole model in float32, and its preprocessing as arguments of `TransformersImageTower`."""
    import transformers
    from transformers.utils import logging as transformers_logging

    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    if not folder.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise UserError(f"backbone.name={name}: no such folder")
    transformers_logging.disable_progress_bar()
    with hub_access(source, key="backbone.name"), _quiet(transformers_logging):
        try:
            config: Any = transformers.AutoConfig.from_pretrained(source)
        except ValueError as error:
            raise UserError(f"backbone.name={name} is no transformers model: {_first_line(error)}") from error
        if config.model_type not in KINDS:
            raise UserError(
                f"backbone.name={name} is a {config.model_type} model: a whole {' or '.join(KINDS.values())} is "
                "expected. Single towers go into backbone.text.name, or backbone.image.name"
            )
        kind = getattr(transformers, KINDS[config.model_type])
        settings = _preprocessing(source, config)
        if not pretrained:
            return kind(config).float(), settings
        try:
            model, report = kind.from_pretrained(
                source, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True
            )
        except pickle.UnpicklingError as error:
            raise UserError(
                f"backbone.name={name}: its weights are a pickle that would run code when it is read, so it is "
                "refused. Convert it to safetensors where you trust it"
            ) from error
        except (RuntimeError, ValueError, EOFError, struct.error, SafetensorError) as error:
            raise UserError(f"backbone.name={name} cannot be loaded: {_first_line(error)}") from error
    _check_report(name, report)
    return model, settings


def _check_report(name: str, report: Any) -> None:
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shapes = sorted(key for key, *_ in report["mismatched_keys"])
    kinds = (("it lacks {} ({})", missing), ("{} of another shape ({})", shapes), ("{} others ({})", unknown))
    if missing or shapes:
        said = [
            what.format(len(names), ", ".join(names[:3]) + "…" * (len(names) > 3)) for what, names in kinds if names
        ]
        raise UserError(
            f"{name} holds the weights of another architecture than its config.json says: {'; '.join(said)}"
        )


def _preprocessing(source: str, config: Any) -> dict[str, Any]:
    """What the model's image processor does, in our words."""
    from transformers import AutoImageProcessor

    squash = config.model_type == "siglip"
    mean, std = ([0.5] * 3, [0.5] * 3) if squash else (CLIP_MEAN, CLIP_STD)
    interpolation = "bicubic"
    try:
        processor: Any = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):  # a folder with the model alone
        processor = None
    if processor is not None:
        mean, std = list(processor.image_mean), list(processor.image_std)
        squash = getattr(processor.size, "height", None) is not None
        interpolation = "bilinear" if int(processor.resample) == 2 else "bicubic"
    preprocess = {"resize": "squash" if squash else "shortest", "interpolation": interpolation, "centre": "floor"}
    return {"preprocess": preprocess, "mean": mean, "std": std}


class _quiet:
    """Silence a library's warnings for what is checked here and said in our own words."""

    def __init__(self, logging: Any) -> None:
        self.logging = logging

    def __enter__(self) -> None:
        self.level = self.logging.get_verbosity()
        self.logging.set_verbosity_error()

    def __exit__(self, *exception: object) -> None:
        self.logging.set_verbosity(self.level)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
