"""The towers of open_clip's models: its vision and text transformers and CLIP's ResNets, each without its projection.

Install: pip install "clipkit-train[open-clip]"
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from clipkit.models.open_clip_tokenizer import import_open_clip
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.projection import LinearProjection, linear_projection
from clipkit.models.timm_groups import Groups
from clipkit.models.tokenizers import load_tokenizer
from clipkit.models.towers import ImageTower, State, TextTower

__all__ = ["OpenClipImageTower", "OpenClipTextTower", "take_projection"]


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
            take_projection(model)
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
        self._assemble(model, _groups, preprocess=square, mean=mean, std=std, standardize=standardize)


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
            first_patch=1,
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
            take_projection(model)
        length = int(config.get("context_length", 77))
        self.model = model
        self.tokenizer = load_tokenizer(tokenizer, length, tokenizer_options)
        self.pretrained, self.standardize = pretrained, None
        self.feature_dim, self.num_groups = int(model.width), len(model.transformer.resblocks)
        self.arguments = {"embed_dim": embed_dim, "config": config, "quick_gelu": quick_gelu}

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


def take_projection(tower: Any) -> LinearProjection | None:
    """Remove a tower's projection and give it as a layer."""
    name = "proj" if hasattr(tower, "proj") else "text_projection"
    taken = getattr(tower, name, None)
    if taken is None:
        return None
    setattr(tower, name, None)
    return (
        linear_projection(taken.weight, taken.bias)
        if isinstance(taken, nn.Linear)
        else linear_projection(taken.detach().T, None)
    )
