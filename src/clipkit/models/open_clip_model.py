"""Whole models of open_clip, as one dual encoder.

Run: python -m clipkit.train backbone=open_clip backbone.name=ViT-B-32/laion2b_s34b_b79k
Install: pip install "clipkit-train[open-clip]"
"""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder, Projection
from clipkit.models.hub import hub_access
from clipkit.models.image import TimmImageTower
from clipkit.models.open_clip_tokenizer import OpenClipTokenizer, import_open_clip
from clipkit.models.open_clip_towers import OpenClipImageTower, OpenClipTextTower, take_projection
from clipkit.models.projection import IdentityProjection, linear_projection, mlp_projection
from clipkit.models.text import TransformersTextTower
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.weights import fill, read_weights, uninitialized

__all__ = ["open_clip_model"]

POOLING = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls"}


def open_clip_model(name: str, *, pretrained: bool = True, patch_dropout: float = 0.0) -> DualEncoder:
    """A model of open_clip as a dual encoder, with its tokenizer, preprocessing, activation and temperature.

    Args:
        name: "ARCH/TAG" of open_clip's list ("ViT-B-32/laion2b_s34b_b79k"), or "ARCH/FILE" with a weights file.
        pretrained: load the weights; false keeps the architecture with fresh ones, and "ARCH" alone will do.
        patch_dropout: share of each picture's patches that training leaves out.

    Raises:
        UserError: an unknown architecture or tag (the message lists what there is), weights that do not fit.
    """
    open_clip = import_open_clip()
    arch, tag = _parse(open_clip, name, pretrained=pretrained)
    config = open_clip.get_model_config(arch)
    config.pop("custom_text", None)
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    settings = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    known = open_clip.get_pretrained_cfg(arch, tag) if tag is not None else {}
    if known:
        config["quick_gelu"] = known.get("quick_gelu", config.get("quick_gelu", False))  # part of the weights
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with _hub(text.get("hf_model_name")), uninitialized() if pretrained else nullcontext():
        model = kind(**deepcopy(config))
    if pretrained:
        assert tag is not None
        _load(open_clip, model, _weights(open_clip, known, tag, name), name)
    encoder = _assemble(open_clip, arch, config, model, {**settings, **_normalisation(known)}, known, pretrained)
    encoder.image.drop_patches(patch_dropout)
    return encoder


def _parse(open_clip: Any, name: str, *, pretrained: bool) -> tuple[str, str | None]:
    from difflib import get_close_matches

    arch, _, tag = name.partition("/")
    models = open_clip.list_models()
    if arch not in models:
        near = get_close_matches(arch, models, n=3, cutoff=0.4)
        raise UserError(f"backbone.name={name}: open_clip has no model {arch}; nearest: {', '.join(near) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained and not open_clip.get_pretrained_cfg(arch, tag) and not Path(tag).expanduser().is_file():
        found = f"no weights {tag!r}" if tag else "no weights named"
        raise UserError(
            f"backbone.name={name}: {found} for {arch}; give ARCH/TAG with one of {', '.join(tags) or 'none'}, "
            "or ARCH/FILE with a weights file"
        )
    return arch, tag or None


def _weights(open_clip: Any, known: dict[str, Any], tag: str, name: str) -> Path:
    if not known:
        return Path(tag).expanduser()
    repository = known.get("hf_hub", "").rpartition("/")[0] or known.get("url", name)
    with _hub(repository):
        return Path(open_clip.download_pretrained(known))


def _load(open_clip: Any, model: Any, file: Path, name: str) -> None:
    """Weights as open_clip would read them: other libraries' names converted, position embeddings interpolated."""
    state = read_weights(file)
    state = open_clip.convert.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    for scalar in ("logit_scale", "logit_bias"):
        own = getattr(model, scalar, None)
        if own is not None and scalar in state:
            state[scalar] = state[scalar].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(model.logit_bias))
    state.pop("text.transformer.embeddings.position_ids", None)
    if "visual.positional_embedding" in state:
        open_clip.model.resize_pos_embed(state, model)
    positions, own = state.get("text.positional_embedding"), getattr(model.text, "positional_embedding", None)
    if positions is not None and own is not None and positions.shape[1:] == own.shape[1:]:
        open_clip.model.resize_text_pos_embed(state, model)
    fill(model, state, source=f"{name} ({file.name})")


def _normalisation(known: dict[str, Any]) -> dict[str, Any]:
    return {key: list(known[key]) for key in ("mean", "std") if key in known}


def _assemble(
    open_clip: Any,
    arch: str,
    config: dict[str, Any],
    model: Any,
    settings: dict[str, Any],
    known: dict[str, Any],
    pretrained: bool,
) -> DualEncoder:
    vision, text_config = config["vision_cfg"], config["text_cfg"]
    shared = {"embed_dim": config["embed_dim"], "quick_gelu": bool(config.get("quick_gelu", False))}
    size = model.visual.image_size
    settings["preprocess"] = {
        "resize": known.get("resize_mode") or "shortest",
        "interpolation": known.get("interpolation") or "bicubic",
        "fill": known.get("fill_color", 0),
    }
    settings |= {"image_size": int(size[0] if isinstance(size, tuple | list) else size), "pretrained": pretrained}
    visual, projection = _image(open_clip, model.visual)
    image: ImageTower
    if isinstance(visual, open_clip.timm_model.TimmModel) and len(visual.head) == 0:
        pool = {} if not vision.get("timm_pool") else {"global_pool": vision["timm_pool"]}
        early = vision.get("timm_proj") not in ("linear", "mlp")  # open_clip sets the pooling when timm builds it
        image = TimmImageTower(
            vision["timm_model_name"],
            model_args=pool if early else {},
            global_pool=None if early else pool.get("global_pool"),
            update_batchnorm=False if pretrained else None,
            interpolate_positions=True,
            model=visual.trunk,
            **settings,
        )
    else:
        image = OpenClipImageTower(config=vision, model=visual, **shared, **settings)
    with _hub(text_config.get("hf_tokenizer_name")):
        tokenizer = open_clip.get_tokenizer(arch)
    text, text_projection = _text(open_clip, model.text, text_config, tokenizer, shared, pretrained)
    encoder = DualEncoder(
        image,
        text,
        projection=_same(projection),
        text_projection=_same(text_projection),
        max_logit_scale=100.0 if model.logit_bias is None else None,
        logit_bias=None if model.logit_bias is None else 0.0,
        aligned=pretrained,
    )
    with torch.no_grad():
        encoder.logit_scale.copy_(model.logit_scale.reshape(()))
        if encoder.logit_bias is not None:
            encoder.logit_bias.copy_(model.logit_bias.reshape(()))
    return encoder.eval()


def _hub(repository: str | None) -> AbstractContextManager[None]:
    """Around what may ask a hub: its failures in our words. Nothing, where no repository is named."""
    return hub_access(repository, key="backbone.name") if repository else nullcontext()


def _image(open_clip: Any, visual: Any) -> tuple[Any, nn.Module | None]:
    """The tower without its projection, and the projection (None: there is none apart)."""
    if isinstance(visual, open_clip.timm_model.TimmModel):
        head = dict(visual.head.named_children())
        if "pool" in head:
            return visual, None  # pooled and projected at once
        classifier = visual.trunk.get_classifier()
        if not head and isinstance(classifier, nn.Linear):  # the network's own classifier projects
            visual.trunk.reset_classifier(0)
            return visual, linear_projection(classifier.weight, classifier.bias)
        visual.head = nn.Sequential()
        if "mlp" in head:
            return visual, mlp_projection(head["mlp"].fc1, head["mlp"].fc2)
        return visual, linear_projection(head["proj"].weight, head["proj"].bias) if "proj" in head else None
    return visual, take_projection(visual)


def _text(
    open_clip: Any, text: Any, config: dict[str, Any], tokenizer: Any, shared: dict[str, Any], pretrained: bool
) -> tuple[TextTower, nn.Module | None]:
    if isinstance(text, open_clip.hf_model.HFTextEncoder):
        pooler = config.get("hf_pooler_type") or "mean_pooler"
        if pooler not in POOLING:
            raise UserError(f"this open_clip model pools its text by {pooler}, which clipkit does not know")
        pad = int(text.config.pad_token_id)
        tower = TransformersTextTower(
            config["hf_model_name"],
            pretrained=pretrained,
            tokenizer=OpenClipTokenizer(tokenizer, config, trims=True, pad_id=pad),
            pooling=POOLING[pooler],  # type: ignore[arg-type]  # one of the four
            max_length=int(config.get("context_length", 77)),
            model=text.transformer,
        )
        layers = [module for module in text.proj.modules() if isinstance(module, nn.Linear)]
        if len(layers) == 2:
            return tower, mlp_projection(*layers)
        return tower, linear_projection(layers[0].weight, layers[0].bias) if layers else None
    causal = text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")
    own = isinstance(tokenizer, open_clip.SimpleTokenizer)
    tokens = OpenClipTokenizer(tokenizer, config, trims=causal and own)
    projection = take_projection(text)
    return OpenClipTextTower(config=config, tokenizer=tokens, pretrained=pretrained, model=text, **shared), projection


def _same(projection: nn.Module | None) -> Projection:
    """What the dual encoder calls with a width, for a projection that exists already."""
    if projection is None:
        return IdentityProjection
    made = projection

    def take(width: int) -> nn.Module:
        return made

    return take
