"""A trained byte-pair tokenizer: it knows every text, depends on nothing but the captions, and is kept by content."""

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import UserError
from clipkit.models.bpe import corpus_tokenizer, train_bpe
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.tokenizer_files import is_intact, save_tokenizer
from conftest import ROOT

CAPTIONS = [
    f"{article} {size} {colour} {shape}, drawn by {who}"
    for article in ("a", "the")
    for size in ("small", "large", "Tiny")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "ring")
    for who in ("Ada", "Noether")
]
NASTY = [
    "",
    " ",
    "  two  spaces\tand a tab\r\n and lines ",
    "👩🏽‍🚀 and 🏳️‍🌈 over 中文字幕 – naïve ﬁancé",
    "AT&amp;T &lt;b&gt;&#128512;</b>",
    "<pad> in <s> a caption </s> <unk>",
    "".join(map(chr, range(32))) + "\x7f\x85\u200b\ufeff\uffff",
    "Ġ Ċ ▁ ## </w> İ ΑΣ ẞ",
    "".join(chr(code) for code in range(0x20, 0x1000, 7)),
    "Long " * 2_000,
    "x" * 10_000,
]
IN_ANOTHER_PROCESS = """
import json, sys
from clipkit.models.bpe import corpus_tokenizer
captions, cache, size = json.load(sys.stdin)
print(corpus_tokenizer(captions, cache_dir=cache, vocab_size=size))
"""


def lower(text: str) -> str:
    """Letter by letter: Python's `str.lower` of a whole text treats a Σ at a word's end apart."""
    return "".join(letter.lower() for letter in text)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def start(cache: Path, captions: list[str], *, parallelism: str, vocab_size: int = 500) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "TOKENIZERS_PARALLELISM": parallelism},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps([captions, str(cache), vocab_size]))
    process.stdin.close()
    process.stdin = None
    return process


def end(process: subprocess.Popen[str]) -> Path:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Path(out.strip())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_bpe(CAPTIONS, lowercase=False)


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_text_comes_back_to_the_character(lowercase: bool) -> None:
    made = train_bpe(CAPTIONS, lowercase=lowercase)
    for text in NASTY:
        ids = made(text)["input_ids"]
        assert (ids[0], ids[-1]) == (made.bos_token_id, made.eos_token_id)
        assert not {0, 1, 2} & set(ids[1:-1]), "special tokens stand at the ends only"
        assert made.decode(ids, skip_special_tokens=True) == (lower(text) if lowercase else text)


def test_lowercase_is_the_default_and_makes_case_invisible() -> None:
    made = train_bpe(CAPTIONS)
    assert made("A TINY Ring")["input_ids"] == made("a tiny ring")["input_ids"]


def test_frequent_words_are_one_token(tokenizer: Any) -> None:
    words = tokenizer.convert_ids_to_tokens(tokenizer("a large red circle")["input_ids"])
    assert words == ["<s>", "a", "Ġlarge", "Ġred", "Ġcircle", "</s>"]


def test_long_texts_are_cut_and_keep_their_end(tokenizer: Any) -> None:
    batch = tokenizer(["a red ring " * 50, "a"], truncation=True, padding=True)
    long, short = batch["input_ids"]
    assert tokenizer.model_max_length == len(long) == len(short) == 32
    assert long[-1] == tokenizer.eos_token_id
    assert long[:-1] == tokenizer("a red ring " * 50)["input_ids"][:31]
    assert short[2:] == [tokenizer.eos_token_id] + 29 * [tokenizer.pad_token_id]
    assert batch["attention_mask"][1] == [1] * 3 + [0] * 29


def test_the_vocabulary_is_as_large_as_allowed_or_as_the_corpus_allows() -> None:
    for size in (259, 260, 300):
        assert len(train_bpe(CAPTIONS, vocab_size=size)) == size
    unlimited = train_bpe(CAPTIONS)
    assert 300 < len(unlimited) < 400
    assert set(unlimited.get_vocab().values()) == set(range(len(unlimited)))


def test_the_smallest_vocabulary_is_that_of_bytes() -> None:
    assert train_bpe(CAPTIONS, vocab_size=259).get_vocab() == byte_tokenizer(32).get_vocab()


def test_pairs_are_joined_from_the_least_frequency_on() -> None:
    once = ["zq", "zq", "jx"]
    assert set(train_bpe(once).get_vocab()) & {"zq", "jx"} == {"zq"}
    assert set(train_bpe(once, min_frequency=1).get_vocab()) & {"zq", "jx"} == {"zq", "jx"}
    assert set(train_bpe(once, min_frequency=3).get_vocab()) & {"zq", "jx"} == set()


def test_the_folder_loads_with_transformers_alone_and_with_every_setting(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(loaded) == len(tokenizer)
    assert (loaded.model_max_length, loaded.padding_side, loaded.pad_token_id) == (32, "right", 0)
    for text in NASTY:
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=True) == text


def test_files_do_not_depend_on_order_process_or_threads(tmp_path: Path) -> None:
    captions = [*CAPTIONS, *NASTY, *CAPTIONS[:7]]
    made = files(corpus_tokenizer(captions, cache_dir=tmp_path / "here", vocab_size=500))
    shuffled = random.Random(3).sample(captions, len(captions))
    save_tokenizer(train_bpe(reversed(captions), vocab_size=500), tmp_path / "reversed")
    others = [start(tmp_path / word, shuffled, parallelism=word) for word in ("true", "false")]
    assert files(tmp_path / "reversed") == made
    for process in others:
        folder = end(process)
        assert files(folder) == made
        assert folder.name == corpus_tokenizer(captions, cache_dir=tmp_path / "here", vocab_size=500).name


def test_a_cached_tokenizer_is_used_again_and_every_option_counts(tmp_path: Path) -> None:
    options: dict[str, Any] = {"vocab_size": 400, "min_frequency": 3, "max_length": 20, "lowercase": False}
    first = corpus_tokenizer(CAPTIONS, cache_dir=tmp_path)
    before = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert corpus_tokenizer(iter(CAPTIONS), cache_dir=str(tmp_path)) == first
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == before
    others = {corpus_tokenizer(CAPTIONS, cache_dir=tmp_path, **{key: value}) for key, value in options.items()}
    others |= {corpus_tokenizer(CAPTIONS[1:], cache_dir=tmp_path)}
    others |= {corpus_tokenizer([*CAPTIONS, CAPTIONS[0]], cache_dir=tmp_path)}
    assert len(others | {first}) == 7
    assert not list((tmp_path / "tokenizers").glob("*.part*"))


def test_a_damaged_folder_is_made_anew(tmp_path: Path) -> None:
    folder = corpus_tokenizer(CAPTIONS, cache_dir=tmp_path)
    whole = files(folder)
    text = (folder / "tokenizer.json").read_text()
    for damage in (
        lambda: (folder / "tokenizer.json").write_text(text[: len(text) // 2]),
        lambda: (folder / "tokenizer.json").write_text(text.replace('"Ġred"', '"Ġrad"')),
        lambda: (folder / "tokenizer_config.json").unlink(),
        lambda: folder.with_name(f"{folder.name}.json").write_text("[1"),
        lambda: folder.with_name(f"{folder.name}.json").unlink(),
    ):
        damage()
        assert not is_intact(folder)
        assert corpus_tokenizer(CAPTIONS, cache_dir=tmp_path) == folder
        assert files(folder) == whole


def test_two_processes_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    captions = [*CAPTIONS, *(f"word{number} of {number // 2}" for number in range(3_000))]
    both = [start(tmp_path, captions, parallelism="false", vocab_size=3_000) for _ in range(2)]
    one, other = map(end, both)
    assert one == other
    assert is_intact(one)
    assert sorted(path.name for path in one.parent.iterdir()) == sorted([one.name, f"{one.name}.json"])


def test_no_room_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))  # the kernel refuses the write as on a full disk
    try:
        with pytest.raises(UserError, match=r"could not be written to .* another place with cache_dir=DIR"):
            corpus_tokenizer(CAPTIONS, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "tokenizers").iterdir()) == []


def test_a_place_that_is_no_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        corpus_tokenizer(CAPTIONS, cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([], {}, "no captions"),
        (["", "  ", "\n"], {}, "no captions"),
        (CAPTIONS, {"vocab_size": 258}, "vocab_size=258: 259 at least"),
        (CAPTIONS, {"min_frequency": 0}, "min_frequency=0"),
        (CAPTIONS, {"max_length": 2}, "max_length=2"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    captions: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe(captions, **options)
    with pytest.raises(UserError, match=message):
        corpus_tokenizer(captions, cache_dir=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
