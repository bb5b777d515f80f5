"""Text towers: pooling, padding, truncation, and the byte tokenizer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.text import TransformersTextTower

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
TEXTS = ["a cat", "two dogs under a tree, in the rain", "z"]


def tiny(**options: Any) -> TransformersTextTower:
    torch.manual_seed(0)
    return TransformersTextTower(config=TINY_BERT, **options).eval()


@pytest.fixture(scope="module")
def minilm() -> TransformersTextTower:
    return TransformersTextTower(MINILM, max_length=32).eval()


def padded(tokens: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    return {name: torch.nn.functional.pad(value, (0, more)) for name, value in tokens.items()}


@torch.no_grad()
def test_minilm_pools_the_mean_of_the_tokens_that_are_there(minilm: TransformersTextTower) -> None:
    tokens = minilm.tokenize(TEXTS)
    hidden = minilm.model(**tokens).last_hidden_state
    for row, found in enumerate(minilm(tokens)):
        count = int(tokens["attention_mask"][row].sum())
        torch.testing.assert_close(found, hidden[row, :count].mean(0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_an_embedding_of_minilm(minilm: TransformersTextTower) -> None:
    together = minilm(minilm.tokenize(TEXTS))
    alone = torch.cat([minilm(minilm.tokenize([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls", "eos", "pooler"])
def test_padding_changes_no_feature_under_any_pooling(pooling: Any) -> None:
    tower = tiny(pooling=pooling)
    tokens = tower.tokenize(TEXTS)
    torch.testing.assert_close(tower(padded(tokens, 9)), tower(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_pooling_takes_the_token_it_names() -> None:
    tokens = tiny().tokenize(TEXTS)
    hidden = tiny().model(**tokens).last_hidden_state
    last = tokens["attention_mask"].sum(1) - 1
    torch.testing.assert_close(tiny(pooling="cls")(tokens), hidden[:, 0])
    torch.testing.assert_close(tiny(pooling="eos")(tokens), torch.stack([hidden[i, last[i]] for i in range(3)]))


@torch.no_grad()
def test_a_text_beyond_the_length_limit_is_cut_and_keeps_its_end_token() -> None:
    tower = tiny(max_length=10)
    short, long = "12345678", "12345678 and what comes later"
    tokens = tower.tokenize([short, long])
    assert tokens["input_ids"].shape == (2, 10)
    assert torch.equal(tokens["input_ids"][0], tokens["input_ids"][1])
    assert tower.tokenizer.tokenizer.convert_ids_to_tokens(tokens["input_ids"][1])[-1] == "</s>"


def test_minilm_texts_beyond_the_length_limit_keep_their_end_token(minilm: TransformersTextTower) -> None:
    tokens = minilm.tokenize(["word " * 100])
    assert tokens["input_ids"].shape == (1, 32)
    assert int(tokens["input_ids"][0, -1]) == minilm.tokenizer.eos_id


@torch.no_grad()
def test_a_standardised_tower_shifts_and_scales_what_the_transformer_gives() -> None:
    tower = tiny(standardize=True)
    tokens = tower.tokenize([f"text number {i}" for i in range(20)])
    tower.standardize.fit(tower.pooled(tokens))
    features = tower(tokens)
    torch.testing.assert_close(features.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("text", ["plain", "tab\tand\nnewline  two spaces ", "déjà vu — 猫 🐈", "", " ", "</s"])
def test_the_byte_tokenizer_gives_the_text_back(text: str) -> None:
    tokenizer = byte_tokenizer(256)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) + 2
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_the_byte_tokenizer_knows_259_tokens() -> None:
    assert len(byte_tokenizer(16)) == 259


@pytest.mark.parametrize("arguments", [{}, {"name": MINILM, "config": TINY_BERT}])
def test_a_text_tower_needs_either_a_name_or_a_configuration(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one of the two"):
        TransformersTextTower(**arguments)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(UserError, match="/no/such/folder"):
        TransformersTextTower("/no/such/folder")
