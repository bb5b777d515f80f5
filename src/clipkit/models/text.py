"""Text towers: any transformers encoder, with the pooling it was trained for.

Run: python -m clipkit.train backbone.text.name=distilbert-base-uncased backbone.text.pooling=cls
"""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.hub import hub_access
from clipkit.models.offline_weights import offline_text_folder
from clipkit.models.standardize import Standardize

__all__ = ["TransformersTextTower"]


class TransformersTextTower(nn.Module):
    """A transformers encoder as a text tower.

    Args:
        name: a model's name or folder; its weights come from an installed package if one holds them, else from the
            model hub. Null with `config`.
        pretrained: load its weights; false keeps its architecture with fresh ones.
        config: a transformers configuration as a mapping (with `model_type`), for a tower from scratch.
        tokenizer: a tokenizer's name or folder, or "bytes"; null means the model's own.
        pooling: mean (over the tokens), cls (the first), eos (the last), pooler (the model's own).
        max_length: longer texts are cut, keeping the end token.
        standardize: shift and scale each feature by its mean and spread over the training captions.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        pooling: Literal["mean", "cls", "eos", "pooler"] = "mean",
        max_length: int = 77,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if (name is None) == (config is None):
            raise UserError("a text tower needs backbone.text.name or backbone.text.config, one of the two")
        self.model, source = _create(name, config, pretrained=pretrained, with_pooler=pooling == "pooler")
        self.tokenizer = _tokenizer(tokenizer or source, max_length)
        self.pooling, self.max_length = pooling, max_length
        self.pretrained = pretrained and config is None
        self.feature_dim = int(self.model.config.hidden_size)
        self.num_groups = len(self._layers())
        self.standardize = Standardize(self.feature_dim) if standardize else None
        self.arguments: dict[str, Any] = {
            "name": name,
            "pooling": pooling,
            "max_length": max_length,
            "standardize": standardize,
        }

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, F] features, not normalised."""
        return self.finish(self.pooled(tokens))

    def finish(self, pooled: Tensor) -> Tensor:
        """What follows the frozen part: the standardisation, if the tower has one. [M, F] -> [M, F]."""
        return pooled if self.standardize is None else cast(Tensor, self.standardize(pooled))

    def pooled(self, tokens: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask` [M, L] -> [M, F], as the transformer gives it."""
        output = self.model(**tokens)
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

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts -> `input_ids` and `attention_mask` [M, L], padded to the longest of them (the mask hides padding)."""
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def group_modules(self, last: int) -> list[nn.Module]:
        """The modules of the last `last` layers; what follows them (norm, pooler) is trained with them."""
        if last == 0:
            return []
        layers = self._layers()
        after = [getattr(self.model, part, None) for part in ("pooler", "final_layer_norm")]
        return [*layers[len(layers) - last :], *[part for part in after if part is not None]]

    def _layers(self) -> list[nn.Module]:
        """The stack of transformer layers: the longest list of modules that are all of one class."""
        stacks: list[Any] = [
            m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1
        ]
        return list(max(stacks, key=len, default=nn.ModuleList()))


def _create(name: str | None, config: dict[str, Any] | None, *, pretrained: bool, with_pooler: bool) -> tuple[Any, str]:
    """The transformers model and where its tokenizer is."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    if config is not None:
        plain = dict(config)
        model = AutoModel.from_config(AutoConfig.for_model(plain.pop("model_type"), **plain))
        return _without_pooler(model) if not with_pooler else model, "bytes"
    assert name is not None
    folder = offline_text_folder(name)
    source = str(folder) if folder is not None else name
    if folder is None and not Path(name).is_dir() and name.count("/") > 1:
        raise UserError(f"backbone.text.name={name}: no such folder")
    transformers_logging.disable_progress_bar()  # "Loading weights" for a fraction of a second
    with hub_access(source, key="backbone.text.name"):
        if pretrained:
            model = AutoModel.from_pretrained(source)
        else:
            model = AutoModel.from_config(AutoConfig.from_pretrained(source))
    return model if with_pooler else _without_pooler(model), source


def _without_pooler(model: Any) -> Any:
    """An unused pooler would be dead weight: never trained, and DDP stops at it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _tokenizer(source: str, max_length: int) -> Any:
    from transformers import AutoTokenizer

    if source == "bytes":
        return byte_tokenizer(max_length)
    with hub_access(source, key="backbone.text.tokenizer"):
        return AutoTokenizer.from_pretrained(source)
