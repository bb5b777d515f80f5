"""Whole models of open_clip, as one dual encoder.

Run: python -m clipkit.train backbone=open_clip backbone.name=ViT-B-32/laion2b_s34b_b79k
Install: pip install "clipkit-train[open-clip]"
"""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder, Projection
from clipkit.models.hub import hub_access
from clipkit.models.image import TimmImageTower
from clipkit.models.open_clip_tokenizer import OpenClipTokenizer, import_open_clip
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.projection import IdentityProjection, LinearProjection, MLPProjection
from clipkit.models.text import TransformersTextTower
from clipkit.models.timm_groups import Groups
from clipkit.models.tokenizers import load_tokenizer
from clipkit.models.towers import ImageTower, State, TextTower, Towers
from clipkit.models.weights import fill, read_weights, uninitialized

__all__ = ["OpenClipImageTower", "OpenClipTextTower", "open_clip_model"]

POOLING = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls"}
REMEMBERED = "save.towers=pretrained does not suit models of open_clip: use save.towers=inside"


class OpenClipImageTower(ImageTower):
    """The image tower of an open_clip model, without its projection where that is a layer of its own.

    Args:
        embed_dim, config, quick_gelu: what open_clip builds it from (`vision_cfg`).
        image_size: side in pixels.
        preprocess: arguments of `ImagePreprocess`, without the size.
        mean, std: pixel normalisation of RGB in 0–1.
        standardize: shift and scale each feature by the training set's mean and standard deviation.
        pretrained: its weights were trained before.
        model: the tower, already in memory.
    """

    def __init__(
        self,
        embed_dim: int,
        config: dict[str, Any],
        *,
        quick_gelu: bool = False,
        image_size: int,
        preprocess: dict[str, Any] | None = None,
        mean: list[float],
        std: list[float],
        standardize: bool = False,
        pretrained: bool = False,
        model: Any = None,
    ) -> None:
        super().__init__()
        open_clip = import_open_clip()
        if model is None:
            model = open_clip.model._build_vision_tower(embed_dim, deepcopy(config), quick_gelu)
            _take_projection(model)
        self.pretrained = pretrained
        self.arguments = {
            "embed_dim": embed_dim,
            "config": config,
            "quick_gelu": quick_gelu,
            "image_size": image_size,
            "preprocess": preprocess,
            "mean": mean,
            "std": std,
            "standardize": standardize,
        }
        square = ImagePreprocess(image_size, **(preprocess or {}))
        self._assemble(model, _groups(model), preprocess=square, mean=mean, std=std, standardize=standardize)

    def spec(self, towers: Towers) -> dict[str, Any]:
        if towers == "pretrained":
            raise UserError(REMEMBERED)
        return super().spec(towers)


def _groups(visual: Any) -> Groups:
    open_clip = import_open_clip()
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        pooling = [visual.ln_post, visual.attn_pool, visual.attn_pool_contrastive] if visual.attn_pool else None
        return Groups(
            stem=visual._embeds,
            groups=list(visual.transformer.resblocks),
            end=lambda x: visual._pool(x)[0],
            end_modules=[part for part in pooling or [visual.ln_post] if part is not None],
            pool=lambda x: x.mean(1),
        )
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        return Groups(
            stem=visual.stem,
            groups=[visual.layer1, visual.layer2, visual.layer3, visual.layer4],
            end=lambda x: visual.attnpool(x),
            end_modules=[visual.attnpool],
            pool=lambda x: x.mean((2, 3)),
        )
    return Groups(lambda x: visual(x), [], lambda x: x, [], None)


class OpenClipTextTower(TextTower):
    """The text transformer of an open_clip model, without its projection.

    Args:
        embed_dim, config, quick_gelu: what open_clip builds it from (`text_cfg`).
        tokenizer: its tokenizer, or the folder that holds its files.
        tokenizer_options: what rebuilds the tokenizer from that folder.
        pretrained: its weights were trained before.
        model: the tower, already in memory.
    """

    def __init__(
        self,
        embed_dim: int,
        config: dict[str, Any],
        *,
        quick_gelu: bool = False,
        tokenizer: Any,
        tokenizer_options: dict[str, Any] | None = None,
        pretrained: bool = False,
        model: Any = None,
    ) -> None:
        super().__init__()
        open_clip = import_open_clip()
        if model is None:
            model = open_clip.model._build_text_tower(embed_dim, deepcopy(config), quick_gelu)
            _take_projection(model)
        length = int(config.get("context_length", 77))
        self.model = model
        self.tokenizer = load_tokenizer(tokenizer, length, tokenizer_options)
        self.pretrained, self.standardize = pretrained, None
        self.feature_dim, self.num_groups = int(model.width), len(model.transformer.resblocks)
        self.arguments = {"embed_dim": embed_dim, "config": config, "quick_gelu": quick_gelu}

    def spec(self, towers: Towers) -> dict[str, Any]:
        if towers == "pretrained":
            raise UserError(REMEMBERED)
        return super().spec(towers)

    def trunk(self, tokens: State, *, groups: int, end: bool = False) -> State:
        hidden, mask = self._embed(tokens["input_ids"])
        hidden = self._advance(hidden, mask, 0, self.num_groups - groups)
        if groups == 0 and not end:
            return {"feature": self._pool(hidden, tokens["input_ids"])}
        return {**tokens, "hidden": hidden}

    def tail(self, state: State, *, groups: int) -> Tensor:
        if "feature" in state:
            return self.finish(state["feature"])
        _, mask = self._embed(state["input_ids"])
        hidden = self._advance(state["hidden"], mask, self.num_groups - groups, self.num_groups)
        return self.finish(self._pool(hidden, state["input_ids"]))

    def group_modules(self, last: int) -> list[nn.Module]:
        return [] if last == 0 else [*self.model.transformer.resblocks[self.num_groups - last :], self.model.ln_final]

    def end_modules(self) -> list[nn.Module]:
        return [self.model.ln_final]

    def _embed(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, mask = self.model._embeds(ids)
        if mask is not None and mask.ndim == 2:  # the causal mask of the full length
            mask = mask[: hidden.shape[1], : hidden.shape[1]]
        return hidden, mask

    def _advance(self, hidden: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
        for block in self.model.transformer.resblocks[start:stop]:
            hidden = block(hidden, attn_mask=mask)
        return hidden

    def _pool(self, hidden: Tensor, ids: Tensor) -> Tensor:
        model = self.model
        pooled: Tensor
        if model.cls_emb is not None:  # CoCa: an added token at the end, normalised after pooling
            pooled = model.ln_final(hidden[:, -1])
            return pooled
        pool = import_open_clip().transformer.text_global_pool
        pooled = pool(model.ln_final(hidden), ids, model.pool_type, eos_token_id=getattr(model, "eos_id", None))
        return pooled


def open_clip_model(name: str, *, pretrained: bool = True) -> DualEncoder:
    """A model of open_clip as a dual encoder, with its tokenizer, preprocessing, activation and temperature.

    Args:
        name: "ARCH/TAG" of open_clip's list ("ViT-B-32/laion2b_s34b_b79k"), or "ARCH/FILE" with a weights file.
        pretrained: load the weights; false keeps the architecture with fresh ones, and "ARCH" alone will do.

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
    return _assemble(open_clip, arch, config, model, {**settings, **_normalisation(known)}, known, pretrained)


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
    if "text.positional_embedding" in state:
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
            return visual, _linear(classifier.weight, classifier.bias)
        visual.head = nn.Sequential()
        if "mlp" in head:
            return visual, _mlp(head["mlp"].fc1, head["mlp"].fc2)
        return visual, _linear(head["proj"].weight, head["proj"].bias) if "proj" in head else None
    return visual, _take_projection(visual)


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
            return tower, _mlp(*layers)
        return tower, _linear(layers[0].weight, layers[0].bias) if layers else None
    causal = text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")
    own = isinstance(tokenizer, open_clip.SimpleTokenizer)
    tokens = OpenClipTokenizer(tokenizer, config, trims=causal and own)
    projection = _take_projection(text)
    return OpenClipTextTower(config=config, tokenizer=tokens, pretrained=pretrained, model=text, **shared), projection


def _take_projection(tower: Any) -> nn.Module | None:
    """Remove a tower's projection and give it as a layer."""
    name = "proj" if hasattr(tower, "proj") else "text_projection"
    taken = getattr(tower, name, None)
    if taken is None:
        return None
    setattr(tower, name, None)
    return _linear(taken.weight, taken.bias) if isinstance(taken, nn.Linear) else _linear(taken.detach().T, None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """[D, F] weights as a projection."""
    layer = LinearProjection(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.linear.weight.copy_(weight)
        if bias is not None:
            layer.linear.bias.copy_(bias)
    return layer


def _mlp(first: nn.Linear, second: nn.Linear) -> nn.Module:
    bias = (first.bias is not None, second.bias is not None)
    layer = MLPProjection(first.in_features, second.out_features, hidden=first.out_features, bias=bias)
    layer.input, layer.output = first, second
    return layer


def _same(projection: nn.Module | None) -> Projection:
    """What the dual encoder calls with a width, for a projection that exists already."""
    if projection is None:
        return IdentityProjection
    made = projection

    def take(width: int) -> nn.Module:
        return made

    return take
