"""A dual encoder as a model of the transformers library alone, where the towers allow.

Run: python -m clipkit.export model=outputs/train/my_run format=transformers
"""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import IdentityProjection, LinearProjection
from clipkit.models.text import TransformersTextTower
from clipkit.models.to_clip import clip_text_model, clip_vision_model
from clipkit.models.tokenizers import TransformersTokenizer
from clipkit.models.transformers_clip import TransformersImageTower
from clipkit.models.weights import uninitialized

__all__ = ["Exported", "to_transformers"]


@dataclass(frozen=True)
class Exported:
    """A model of transformers with what belongs to it.

    Attributes:
        model: a `CLIPModel`, `SiglipModel` or `VisionTextDualEncoderModel`.
        tokenizer, processor: what turns texts and pictures into its inputs.
    """

    model: Any
    tokenizer: Any
    processor: Any


def to_transformers(encoder: DualEncoder) -> Exported:
    """The transformers model that computes the same; it holds copies of the weights.

    A CLIP or SigLIP of transformers becomes what it was. A vision transformer and a causal text transformer built as
    CLIP's (open_clip's, or clipkit's own from scratch) become a `CLIPModel`. A timm or CLIP image tower with a
    transformers text tower read at its pooler becomes a `VisionTextDualEncoderModel`. Pictures are cropped as
    transformers does it: an odd surplus pixel can fall on the other side than with timm and open_clip.

    Raises:
        UserError: transformers has no model that computes the same; the message says what stands in the way.
    """
    for name, tower in (("image", encoder.image), ("text", encoder.text)):
        if tower.standardize is not None:
            raise UserError(
                f"no transformers model standardises features, as this {name} tower does (standardize=true)"
            )
    tokens = encoder.text.tokenizer
    if isinstance(tokens, TransformersTokenizer):
        tokenizer = copy(tokens.tokenizer)
        tokenizer.model_max_length = tokens.max_length
    else:
        tokenizer = _clip_tokenizer(encoder)
    processor = _processor(encoder)
    reasons: list[str] = []
    for make in (_siglip, _clip, _two_towers):
        found = make(encoder)
        if not isinstance(found, str):
            return Exported(found.eval(), tokenizer, processor)
        reasons.append(found)
    raise UserError("this model has no counterpart in transformers: " + "; ".join(reasons))


def _siglip(encoder: DualEncoder) -> Any:
    from transformers import SiglipConfig, SiglipModel

    image, text = encoder.image, encoder.text
    kinds = [getattr(getattr(t.model, "config", None), "model_type", None) for t in (image, text)]
    if kinds != ["siglip_vision_model", "siglip_text_model"] or encoder.logit_bias is None:
        return "not a SiglipModel, for its towers are others"
    if not all(isinstance(p, IdentityProjection) for p in (encoder.image_projection, encoder.text_projection)):
        return "not a SiglipModel, for it has projections"
    config = SiglipConfig(text_config=text.model.config.to_dict(), vision_config=image.model.config.to_dict())
    parts = {"vision_model": image.model, "text_model": text.model}
    return _filled(SiglipModel, config, parts, encoder, shape=(1,), logit_bias=encoder.logit_bias)


def _clip(encoder: DualEncoder) -> Any:
    from transformers import CLIPConfig, CLIPModel

    if encoder.logit_bias is not None:
        return "not a CLIPModel, for it has a logit bias"
    vision, text = clip_vision_model(encoder.image), clip_text_model(encoder.text)
    for found in (vision, text, _projections(encoder)):
        if isinstance(found, str):
            return f"not a CLIPModel, for {found}"
    width = encoder.embed_dim
    config = CLIPConfig(
        text_config={**text.config.to_dict(), "projection_dim": width},
        vision_config={**vision.config.to_dict(), "projection_dim": width},
        projection_dim=width,
    )
    parts = {"vision_model": vision, "text_model": text, **_projections(encoder)}
    return _filled(CLIPModel, config, parts, encoder)


def _two_towers(encoder: DualEncoder) -> Any:
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    text = encoder.text
    if not isinstance(text, TransformersTextTower) or text.pooling != "pooler":
        return "not a VisionTextDualEncoderModel, for its text tower is not read at a transformers pooler"
    if encoder.logit_bias is not None:
        return "not a VisionTextDualEncoderModel, for it has a logit bias"
    vision = _vision_tower(encoder)
    for found in (vision, _projections(encoder)):
        if isinstance(found, str):
            return f"not a VisionTextDualEncoderModel, for {found}"
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.model.config, projection_dim=encoder.embed_dim
    )
    parts = {"vision_model": vision, "text_model": text.model, **_projections(encoder)}
    return _filled(VisionTextDualEncoderModel, config, parts, encoder)


def _vision_tower(encoder: DualEncoder) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    tower = encoder.image
    if isinstance(tower, TransformersImageTower):
        return tower.model
    if not isinstance(tower, TimmImageTower):
        return "its image tower is not one of timm"
    given = tower.arguments
    for option in ("pooled_stages", "fold_batchnorm", "attention_pool"):
        if given[option]:
            return f"its image tower has {option}={given[option]}"
    pool = {} if given["global_pool"] is None else {"global_pool": given["global_pool"]}
    sized = {"img_size": given["image_size"]} if tower.fixed_size else {}
    config = TimmWrapperConfig(
        architecture=given["name"].split(".")[0], model_args={**given["model_args"], **pool, **sized}
    )
    config.hidden_size = tower.feature_dim  # the dual encoder asks for it
    with uninitialized():
        wrapped = TimmWrapperModel(config)
    state = tower.model.state_dict()
    own = wrapped.timm_model.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
        return "timm builds its image tower in another way from its name alone"
    wrapped.timm_model.load_state_dict(state)
    return wrapped


def _projections(encoder: DualEncoder) -> Any:
    pair = {"visual_projection": encoder.image_projection, "text_projection": encoder.text_projection}
    for name, projection in pair.items():
        if isinstance(projection, IdentityProjection):
            pair[name] = _unit(projection.embed_dim)
        elif not isinstance(projection, LinearProjection):
            return f"its projections are {type(projection).__name__}, not linear"
        elif projection.linear.bias is not None:
            return "its projections have a bias"
        else:
            pair[name] = projection.linear
    return pair


def _unit(width: int) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def _filled(
    kind: Any,
    config: Any,
    parts: dict[str, nn.Module],
    encoder: DualEncoder,
    *,
    shape: tuple[int, ...] = (),
    **scalars: Tensor,
) -> Any:
    """The whole model of these parts."""
    state = {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    for name, value in {"logit_scale": encoder.logit_scale, **scalars}.items():
        state[name] = value.detach().reshape(shape)
    with uninitialized():
        model = kind(config)
    model.load_state_dict(state)
    return model


def _clip_tokenizer(encoder: DualEncoder) -> Any:
    """transformers' own CLIP tokenizer in place of open_clip's, which mends HTML and broken text first."""
    from clipkit.models.tokenizers import clip_tokenizer

    if encoder.text.tokenizer.vocab_size != 49_408:
        raise UserError("this model's tokenizer of open_clip has no counterpart in transformers")
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = int(encoder.text.arguments["config"].get("context_length", 77))
    return tokenizer


def _processor(encoder: DualEncoder) -> Any:
    from transformers import CLIPImageProcessor

    square = encoder.preprocess
    if square.resize == "longest":
        raise UserError("no transformers processor resizes by the longest side and fills, as this model does")
    side = int(square.size / square.crop_share)
    squash = square.resize == "squash"
    return CLIPImageProcessor(
        size={"height": side, "width": side} if squash else {"shortest_edge": side},
        crop_size={"height": square.size, "width": square.size},
        do_center_crop=not squash or side != square.size,
        resample=2 if square.interpolation == "bilinear" else 3,
        image_mean=encoder.image.mean.flatten().tolist(),
        image_std=encoder.image.std.flatten().tolist(),
    )


def check_same(encoder: DualEncoder, exported: Exported) -> float:
    """The largest difference between the two models' cosines, on random pixels and a few texts."""
    texts = ["a photo of a cat", "two words", "x"]
    generator = torch.Generator().manual_seed(0)
    size = encoder.preprocess.size
    pixels = torch.rand(2, 3, size, size, generator=generator)
    with torch.no_grad():
        tokens = encoder.tokenize(texts)
        inputs = exported.tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        found = exported.model(pixel_values=(pixels - encoder.image.mean) / encoder.image.std, **inputs)
        wanted = encoder.encode_image(pixels) @ encoder.encode_text(tokens).T
        cosines = found.image_embeds @ found.text_embeds.T
    return float((cosines - wanted).abs().max())
