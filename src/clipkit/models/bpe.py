"""A byte-pair vocabulary (arXiv 1508.07909) over bytes, trained on a data set's own captions.

Run: python -m clipkit.tokenizer data=emoji vocab_size=20000
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain, repeat, starmap
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import UserError
from clipkit.models.tokenizer_files import is_intact, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["corpus_tokenizer", "train_bpe"]

SPECIAL = PAD, END, START = "<pad>", "</s>", "<s>"  # transformers takes a CLIP whose end token is 2 for an old one


def train_bpe(
    captions: Iterable[str],
    *,
    vocab_size: int = 20_000,
    min_frequency: int = 2,
    max_length: int = 32,
    lowercase: bool = True,
) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer for these captions, in whatever order: `<s> … </s>`, padded on the right with `<pad>`.

    All 256 bytes are tokens, so it knows every text. Special tokens written in a caption are plain text.

    Args:
        vocab_size: at most, special tokens and bytes included; fewer where the captions hold no more.
        min_frequency: pairs of tokens seen less often are not joined.
        max_length: what truncation leaves, start and end included.
        lowercase: letter by letter; without it decoding gives back the text to the character.

    Raises:
        UserError: no caption has a visible character, or a number is too small.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    _check(vocab_size, min_frequency, max_length)
    if not (counted := _counted(captions)):
        raise UserError("there are no captions to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder, alphabet = decoders.ByteLevel(), sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain.from_iterable(starmap(repeat, counted)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=max_length,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" in a caption is four characters, not its end
    )


def corpus_tokenizer(
    captions: Iterable[str],
    *,
    cache_dir: Path | str,
    vocab_size: int = 20_000,
    min_frequency: int = 2,
    max_length: int = 32,
    lowercase: bool = True,
) -> Path:
    """The folder of `train_bpe`'s tokenizer: `cache_dir/tokenizers/DIGEST`, trained if it is not there or damaged.

    `UserError` as there, or if the folder cannot be written.
    """
    import tokenizers

    counted = _counted(captions)
    options = {"vocab_size": vocab_size, "min_frequency": min_frequency, "max_length": max_length}
    key = json.dumps([tokenizers.__version__, options, lowercase, counted])
    folder = Path(cache_dir).expanduser() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not is_intact(folder):
        texts = chain.from_iterable(starmap(repeat, counted))
        save_tokenizer(train_bpe(texts, lowercase=lowercase, **options), folder, key="cache_dir", checkable=True)
    return folder


def _check(vocab_size: int, min_frequency: int, max_length: int) -> None:
    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise UserError(f"vocab_size={vocab_size}: {least} at least are needed, for 256 bytes and {', '.join(SPECIAL)}")
    for name, value, smallest in (("min_frequency", min_frequency, 1), ("max_length", max_length, 3)):
        if value < smallest:
            raise UserError(f"{name}={value}: {smallest} or more is expected")


def _counted(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Distinct captions with their numbers, sorted. Half a surrogate pair, as JSON can hold, becomes "?"."""
    counted = Counter(caption.encode("utf-8", "replace").decode() for caption in captions)
    return sorted((caption, count) for caption, count in counted.items() if caption.strip())
