"""From texts to token ids, as the tower's own library does it. A tower's tokenizer is saved with the model."""

import gzip
from importlib import util
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.hub import hub_access
from clipkit.models.offline_weights import offline_vocabulary

__all__ = ["Tokenizer", "TransformersTokenizer", "clip_tokenizer", "load_tokenizer", "named_tokenizer"]

FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
CLIP_REPOSITORY = "openai/clip-vit-base-patch32"


class Tokenizer(Protocol):
    """What a text tower needs of its tokenizer."""

    vocab_size: int  # one more than the largest id

    @property
    def trims(self) -> bool:
        """Whether batches are cut to their longest text, since the tower does not see what stands after it."""
        ...

    @property
    def options(self) -> dict[str, Any] | None:
        """What `load_tokenizer` needs beside the folder; None: nothing."""
        ...

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts -> `input_ids` and `attention_mask`, int64 [M, L]."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer(folder, …)` reads."""
        ...


class TransformersTokenizer:
    """A transformers tokenizer with a tower's length and padding.

    Args:
        tokenizer: from transformers; without a padding token its end token pads (the mask hides it).
        max_length: longer texts are cut, keeping the end token.
        fixed: pad every text to `max_length` and let the tower see the padding (SigLIP was trained so).

    Raises:
        UserError: it has neither a padding nor an end token.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, fixed: bool = False) -> None:
        self.tokenizer, self.max_length, self.fixed = tokenizer, max_length, fixed
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError(
                    f"{tokenizer.name_or_path or 'this tokenizer'} has neither a padding nor an end token, and none is "
                    "invented: give another with backbone.text.tokenizer=PATH"
                )
            tokenizer.pad_token = tokenizer.eos_token
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1

    @property
    def trims(self) -> bool:
        return not self.fixed

    @property
    def options(self) -> None:
        return None

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, by whichever name the tokenizer calls it."""
        found = self.tokenizer.eos_token_id
        found = self.tokenizer.sep_token_id if found is None else found
        return None if found is None else int(found)

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        try:
            encoded = self._encode(texts)
        except (UnicodeEncodeError, TypeError, RuntimeError):  # half of a surrogate pair, as a JSON file can hold
            encoded = self._encode([text.encode("utf-8", "replace").decode() for text in texts])
        ids, mask = encoded["input_ids"], encoded.get("attention_mask")
        if ids.shape[1] == 0:  # only empty texts, and a tokenizer without start and end
            ids = torch.full((len(texts), 1), self.pad_id)
            mask = torch.zeros_like(ids)
        if self.fixed or mask is None:
            mask = torch.ones_like(ids)
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def _encode(self, texts: list[str]) -> Any:
        padding = "max_length" if self.fixed else True
        return self.tokenizer(texts, padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt")


def load_tokenizer(
    source: "str | Tokenizer", max_length: int, options: dict[str, Any] | None = None, *, fixed: bool = False
) -> Tokenizer:
    """A tower's tokenizer.

    Args:
        source: one that is already made, or a name or folder as for `named_tokenizer`.
        max_length: longer texts are cut.
        options: from a saved model, what its tokenizer said of itself.
        fixed: pad every text to `max_length` and let the tower see the padding.
    """
    if not isinstance(source, str):
        return source
    if options is not None:
        from clipkit.models.open_clip_tokenizer import OpenClipTokenizer

        return OpenClipTokenizer.restore(source, options)
    return TransformersTokenizer(named_tokenizer(source, max_length), max_length, fixed=fixed)


def named_tokenizer(name: str, max_length: int) -> Any:
    """The transformers tokenizer of a name.

    Args:
        name: "bytes", "clip", a folder, or a model's name; where the hub is not needed (an installed package has the
            same vocabulary) it is not asked.
        max_length: of the "bytes" tokenizer.
    """
    if name == "bytes":
        return byte_tokenizer(max_length)
    if name == "clip":
        return clip_tokenizer()
    from transformers import AutoTokenizer

    if Path(name).is_file() or name.startswith(("/", "./", "../", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"backbone.text.tokenizer={name}: no such folder")
        name = str(folder)
    if Path(name).is_dir():
        _check_folder(Path(name))
    vocabulary = offline_vocabulary(name)
    source = name if vocabulary is None else str(vocabulary)
    with hub_access(source, key="backbone.text.tokenizer"):
        try:
            return AutoTokenizer.from_pretrained(source)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"backbone.text.tokenizer={name} is no tokenizer that transformers knows: {error}"
            ) from error


def _check_folder(folder: Path) -> None:
    """Raise for a folder without a tokenizer: transformers would make one of three tokens there."""
    if any((folder / name).is_file() for name in FILES):
        return
    below = [folder / name for name in ("tokenizer", "model/tokenizer") if (folder / name).is_dir()]
    hint = f"did you mean {below[0]}?" if below else "copy those of the model there, or name another folder or clip"
    raise UserError(f"{folder} holds no tokenizer ({', '.join(FILES[:3])} …): {hint}")


def clip_tokenizer() -> Any:
    """CLIP's byte-pair encoding of 49,408 tokens, as transformers has it.

    Its table comes from the open_clip package if that is installed, else from the model hub.
    """
    spec = util.find_spec("open_clip")
    table = Path(spec.submodule_search_locations[0], "bpe_simple_vocab_16e6.txt.gz") if _found(spec) else None  # type: ignore[union-attr,index]  # _found has looked
    if table is None or not table.is_file():
        from transformers import AutoTokenizer

        with hub_access(CLIP_REPOSITORY, key="backbone.text.tokenizer"):
            return AutoTokenizer.from_pretrained(CLIP_REPOSITORY)
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(table.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49_152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _found(spec: Any) -> bool:
    return spec is not None and bool(spec.submodule_search_locations)
