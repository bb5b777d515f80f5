"""open_clip's tokenizers: its own byte-pair encoding with its text cleaning, or a transformers one behind the same."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import UserError

__all__ = ["OpenClipTokenizer", "import_open_clip"]


def import_open_clip() -> Any:
    """The open_clip package, or how to install it."""
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed: pip install "clipkit-train[open-clip]"') from error
    return open_clip


class OpenClipTokenizer:
    """A tokenizer of open_clip, whose ids are kept as they are; only columns that no text reaches are left out.

    Args:
        tokenizer: one of open_clip's.
        text_config: the `text_cfg` of the model, which rebuilds it.
        trims: the tower gives the same without what stands after the longest text.
        pad_id: the id that a text tower masks; None: it masks nothing, texts end at their end token.
    """

    def __init__(self, tokenizer: Any, text_config: dict[str, Any], *, trims: bool, pad_id: int | None = None) -> None:
        self.tokenizer, self.text_config, self.trims, self.pad_id = tokenizer, text_config, trims, pad_id
        inner = getattr(tokenizer, "tokenizer", None)
        self.vocab_size = max(inner.get_vocab().values()) + 1 if inner is not None else int(tokenizer.vocab_size)

    @property
    def options(self) -> dict[str, Any]:
        """What rebuilds it, beside its files."""
        return {"library": "open_clip", "text_config": self.text_config, "trims": self.trims, "pad_id": self.pad_id}

    @classmethod
    def restore(cls, folder: str, options: dict[str, Any]) -> "OpenClipTokenizer":
        """From what `options` gave and the folder that `save` wrote."""
        open_clip = import_open_clip()
        config = options["text_config"]
        length, extra = config.get("context_length", 77), config.get("tokenizer_kwargs") or {}
        if config.get("hf_tokenizer_name"):
            tokenizer: Any = open_clip.tokenizer.HFTokenizer(
                folder, context_length=length, tokenizer_mode=config.get("tokenizer_mode"), **extra
            )
        else:
            tokenizer = open_clip.SimpleTokenizer(context_length=length, **extra)
        return cls(tokenizer, config, trims=options["trims"], pad_id=options["pad_id"])

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        ids: Tensor = self.tokenizer(texts).long()
        if self.pad_id is not None:
            mask = ids.ne(self.pad_id).long()
        elif self.trims:  # the end token has the largest id
            mask = (torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)).long()
        else:
            mask = torch.ones_like(ids)
        length = int((mask * torch.arange(1, ids.shape[1] + 1)).max()) if self.trims else ids.shape[1]
        length = max(1, length)
        return {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}

    def save(self, folder: Path) -> None:
        """Write its files; open_clip's own encoding needs none beside the installed package."""
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)
