"""Text towers: any transformers encoder, with the pooling it was trained for.

Run: python -m clipkit.train backbone.text.name=distilbert-base-uncased backbone.text.pooling=cls
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.hub import hub_access
from clipkit.models.layer_stack import LayerStack
from clipkit.models.offline_weights import known_text_config, offline_text_folder
from clipkit.models.standardize import Standardize
from clipkit.models.tokenizers import Tokenizer, TransformersTokenizer, load_tokenizer
from clipkit.models.towers import State, TextTower, Towers

__all__ = ["TransformersTextTower"]

SEES_PADDING = ("siglip", "siglip2")  # trained with every text padded to one length, and no mask
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")


class TransformersTextTower(TextTower):
    """A transformers encoder as a text tower.

    Args:
        name: a model's name or folder; its weights come from an installed package if one holds them, else from the
            model hub. Null with `config`.
        pretrained: load its weights; false keeps its architecture with fresh ones.
        config: a transformers configuration as a mapping (with `model_type`), for a tower from scratch.
        tokenizer: a tokenizer's name or folder, "clip" or "bytes"; null means the model's own.
        tokenizer_options: what a saved tokenizer of another library needs beside its folder.
        pooling: mean (over the tokens), cls (the first), eos (the last), pooler (the model's own).
        max_length: longer texts are cut, keeping the end token.
        standardize: shift and scale each feature by its mean and spread over the training captions.
        model: a transformers model that is already in memory; `name` and `config` are then only remembered.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        tokenizer: str | Tokenizer | None = None,
        tokenizer_options: dict[str, Any] | None = None,
        pooling: Literal["mean", "cls", "eos", "pooler"] = "mean",
        max_length: int = 77,
        standardize: bool = False,
        model: Any = None,
    ) -> None:
        super().__init__()
        if model is None and (name is None) == (config is None):
            raise UserError("a text tower needs backbone.text.name or backbone.text.config, one of the two")
        given, foreign = model is not None, tokenizer is not None or name is None
        source = "bytes" if name is None else name
        kind = None if config is None else config.get("model_type")
        if model is None and pretrained and name is not None:
            model = _create(name, None, pretrained=True, with_pooler=pooling == "pooler", ids={})
        tokenizer = load_tokenizer(tokenizer or source, max_length, tokenizer_options, fixed=_sees_padding(kind))
        self.tokenizer = tokenizer
        if model is None:
            fitted = name is not None and isinstance(tokenizer, TransformersTokenizer)
            ids = _ids(tokenizer) if fitted else {}
            model = _create(name, config, pretrained=pretrained, with_pooler=pooling == "pooler", ids=ids)
        kind = model.config.model_type
        if isinstance(self.tokenizer, TransformersTokenizer) and _sees_padding(kind):
            self.tokenizer.fixed = True
        if foreign:
            self._check_vocabulary(model.get_input_embeddings().num_embeddings)
        _check_length(model.config, max_length)
        self.model = model
        self.pooling, self.max_length = pooling, max_length
        self.pretrained = pretrained and (name is not None or given)
        self.found_by_name = pretrained and name is not None and self.tokenizer.options is None
        self.feature_dim = _width(model.config, pooling)
        self._stack = LayerStack(model)
        self.standardize = Standardize(self.feature_dim) if standardize else None
        self.arguments: dict[str, Any] = {
            "name": name,
            "config": config,
            "pooling": pooling,
            "max_length": max_length,
            "standardize": standardize,
        }

    @cached_property
    def num_groups(self) -> int:  # type: ignore[override]  # found when it is first asked for
        """How many layers can be frozen apart; 0 if the model's forward does not let itself be split."""
        return len(self._stack.layers) if self._stack.can_split() else 0

    def trunk(self, tokens: State, *, groups: int, end: bool = False) -> State:
        if groups == 0 and not end:
            return {"feature": self._pool(self._stack.run(tokens), tokens)}
        hidden = self._stack.until(len(self._stack.layers) - groups, tokens)
        return {**tokens, "hidden": hidden}

    def tail(self, state: State, *, groups: int) -> Tensor:
        if "feature" in state:
            return self.finish(state["feature"])
        tokens = {name: value for name, value in state.items() if name != "hidden"}
        output = self._stack.onwards(len(self._stack.layers) - groups, state["hidden"], tokens)
        return self.finish(self._pool(output, tokens))

    def group_modules(self, last: int) -> list[nn.Module]:
        return [] if last == 0 else [*self._stack.layers[-last:], *self.end_modules()]

    def end_modules(self) -> list[nn.Module]:
        names = ("pooler", "final_layer_norm", "final_norm", "norm", "ln_f", "head")
        return [part for part in (getattr(self.model, name, None) for name in names) if isinstance(part, nn.Module)]

    def spec(self, towers: Towers) -> dict[str, Any]:
        spec = super().spec(towers)
        if towers == "inside":
            spec |= {"name": None, "config": plain_config(self.model.config)}
        return spec

    def _pool(self, output: Any, tokens: State) -> Tensor:
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        hidden: Tensor = output.last_hidden_state  # [M, L, F]
        mask = tokens["attention_mask"]
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "eos":
            last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain values: `model_type` and what differs from its defaults."""
    drop = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache")
    plain = {key: value for key, value in config.to_diff_dict().items() if key not in drop}
    return {"model_type": config.model_type, **plain}


def build_config(plain: dict[str, Any]) -> Any:
    """The transformers configuration of such plain values."""
    from transformers import AutoConfig

    rest = dict(plain)
    kind = rest.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **rest)
    except (ValueError, TypeError) as error:
        raise UserError(f"backbone.text.config: {str(error).partition(chr(10))[0]}") from error


def _sees_padding(kind: str | None) -> bool:
    return kind is not None and kind.split("_")[0] in SEES_PADDING


def _ids(tokenizer: Any) -> dict[str, Any]:
    """What a fresh model must know of its tokenizer."""
    of = tokenizer.tokenizer
    named = {"pad_token_id": tokenizer.pad_id, "bos_token_id": of.bos_token_id, "eos_token_id": tokenizer.eos_id}
    return {"vocab_size": tokenizer.vocab_size, **named}


def _create(
    name: str | None, config: dict[str, Any] | None, *, pretrained: bool, with_pooler: bool, ids: dict[str, Any]
) -> Any:
    """The transformers model, float32 whatever its file holds."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    if name is not None and not pretrained:
        config = known_text_config(name)
    if config is not None:
        return _encoder(_fresh(build_config({**config, **ids})), with_pooler)
    assert name is not None
    folder = offline_text_folder(name)
    source = str(folder) if folder is not None else name
    if folder is None and not Path(name).is_dir() and name.count("/") > 1:
        raise UserError(f"backbone.text.name={name}: no such folder")
    transformers_logging.disable_progress_bar()  # "Loading weights" for a fraction of a second
    with hub_access(source, key="backbone.text.name"):
        if pretrained:
            model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
            model = getattr(model, "text_model", model)  # a whole CLIP
            _check_report(name, report["missing_keys"], with_pooler=with_pooler)
        else:
            found = AutoConfig.from_pretrained(source)
            found.update(ids)
            model = _fresh(found)
    return _encoder(model, with_pooler)


def _fresh(config: Any) -> Any:
    """A model with initial weights; transformers' own list lacks the text tower of SigLIP."""
    import transformers

    if config.model_type == "siglip_text_model":
        return transformers.SiglipTextModel(config).float()
    return transformers.AutoModel.from_config(config, dtype=torch.float32)


def _encoder(model: Any, with_pooler: bool) -> Any:
    """The model without a decoder, and without an unused pooler: never trained, and DDP stops at it."""
    if getattr(model, "decoder", None) is not None:
        model = model.get_encoder()
    if not with_pooler and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _check_report(name: str, missing: Any, *, with_pooler: bool) -> None:
    """Refuse a file that leaves weights of the encoder at random values."""
    lacking = sorted(key for key in missing if with_pooler or not key.startswith("pooler."))
    if lacking:
        hint = "; it has no trained pooler: use pooling=mean or cls" if "pooler." in lacking[0] else ""
        raise UserError(f"{name} lacks {len(lacking)} weights of its architecture ({', '.join(lacking[:3])}…){hint}")


def _check_length(config: Any, max_length: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return
    used = config.pad_token_id + 1 if config.model_type in COUNTS_FROM_PADDING else 0
    if max_length > positions - used:
        why = f", which it counts from its padding id {config.pad_token_id}" if used else ""
        raise UserError(
            f"backbone.text.max_length={max_length}: this tower has {max(0, positions - used)} positions{why}"
        )


def _width(config: Any, pooling: str) -> int:
    projected = getattr(config, "projection_size", None) if config.model_type.startswith("siglip") else None
    return int(projected if projected is not None and pooling == "pooler" else config.hidden_size)
