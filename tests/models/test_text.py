"""Text towers: pooling, padding, truncation, and tokenizers that fit and that do not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from tiny_towers import TINY_BERT, random_pictures
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.offline_weights import offline_text_folder
from clipkit.models.text import TransformersTextTower
from clipkit.models.tokenizers import TransformersTokenizer
from clipkit.models.weights import uninitialized
from clipkit.runs.compose import compose_config

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
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


def word_tokenizer(**special: str) -> Any:
    """Seven words and no special token but those given."""
    words = {word: index for index, word in enumerate(["a", "cat", "dog", "two", "[UNK]", "<end>", "<fill>"])}
    tokenizer = FastTokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


def test_a_tokenizer_without_padding_pads_with_its_end_token_and_gets_no_new_id() -> None:
    tokenizer = TransformersTokenizer(word_tokenizer(eos_token="<end>"), 16)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (7, 5, 5)
    tokens = tokenizer(["a cat", "two"])
    assert tokens["input_ids"].tolist() == [[0, 1], [3, 5]]
    assert tokens["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_tokenizer_with_padding_keeps_it() -> None:
    tokenizer = TransformersTokenizer(word_tokenizer(eos_token="<end>", pad_token="<fill>"), 16)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (7, 6)
    assert tokenizer(["a cat", "two"])["input_ids"].tolist() == [[0, 1], [3, 6]]


def test_a_tokenizer_with_neither_padding_nor_end_token_is_refused() -> None:
    with pytest.raises(UserError, match="neither a padding nor an end token"):
        TransformersTokenizer(word_tokenizer(), 16)


@torch.no_grad()
def test_texts_without_any_token_have_finite_features() -> None:
    tower = tiny(tokenizer=TransformersTokenizer(word_tokenizer(eos_token="<end>"), 16))
    features = tower(tower.tokenize(["", " "]))
    assert features.shape == (2, 64)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (TINY_BERT, 128),
        ({**TINY_BERT, "model_type": "roberta"}, 127),
        ({**TINY_BERT, "model_type": "xlm-roberta", "pad_token_id": 1}, 126),
        ({**TINY_BERT, "model_type": "mpnet", "pad_token_id": 1}, 126),
    ],
)
def test_as_many_tokens_as_a_tower_has_positions_and_no_more(config: dict[str, Any], positions: int) -> None:
    tower = TransformersTextTower(config=config, max_length=positions).eval()
    tokens = tower.tokenize(["words " * 60, "short"])
    assert tokens["input_ids"].shape == (2, positions)
    with torch.no_grad():
        assert torch.isfinite(tower(tokens)).all()
    with pytest.raises(UserError, match=rf"max_length={positions + 1}: this tower has {positions} positions"):
        TransformersTextTower(config=config, max_length=positions + 1)


def test_a_tokenizer_of_more_tokens_than_the_embedding_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"259 tokens.*embedding 200"):
        TransformersTextTower(config={**TINY_BERT, "vocab_size": 200})
    with pytest.raises(UserError, match=r"30522 tokens.*embedding 259"):
        TransformersTextTower(config=TINY_BERT, tokenizer=str(offline_text_folder(MINILM)))


def test_pretrained_weights_do_not_take_a_larger_tokenizer(tmp_path: Path) -> None:
    tiny().model.save_pretrained(tmp_path)
    tower = TransformersTextTower(str(tmp_path), tokenizer="bytes").eval()
    tokens = tower.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.equal(tower(tokens), tiny()(tokens))
    with pytest.raises(UserError, match=r"30522 tokens.*embedding 259"):
        TransformersTextTower(str(tmp_path), tokenizer=str(offline_text_folder(MINILM)))


@pytest.mark.parametrize("name", ["distilroberta-base", "distilbert-base-uncased", "bert-base-uncased"])
def test_a_tower_from_scratch_is_fitted_to_another_tokenizer(name: str) -> None:
    with uninitialized():
        tower = TransformersTextTower(name, pretrained=False, tokenizer="bytes")
    config, of_bytes = tower.model.config, byte_tokenizer(16)
    assert config.vocab_size == tower.model.get_input_embeddings().num_embeddings == 259
    assert config.pad_token_id == tower.model.get_input_embeddings().padding_idx == of_bytes.pad_token_id
    assert (config.bos_token_id, config.eos_token_id) == (of_bytes.bos_token_id, of_bytes.eos_token_id)
    assert tower.feature_dim == 768
    assert not tower.pretrained


def test_a_fresh_tower_from_a_folder_is_fitted_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = TransformersTextTower(config={**TINY_BERT, "vocab_size": 1000, "pad_token_id": 3})
    wide.model.save_pretrained(tmp_path)
    tower = TransformersTextTower(str(tmp_path), pretrained=False, tokenizer="bytes").eval()
    assert tower.model.get_input_embeddings().num_embeddings == 259
    assert tower.model.config.pad_token_id == 0
    tokens = tower.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(tower(padded(tokens, 9)), tower(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_resnet50_and_distilbert_from_scratch_need_no_hub() -> None:
    overrides = [f"backbone.{tower}.pretrained=false" for tower in ("image", "text")]
    backbone = compose_config("train", ["backbone=resnet50_distilbert", *overrides]).backbone
    with uninitialized():
        image, text = instantiate(backbone.image).eval(), instantiate(backbone.text).eval()
    assert text.tokenizer.vocab_size == text.model.get_input_embeddings().num_embeddings == 30_522
    assert text.tokenize(["A cat."])["input_ids"].tolist() == [[101, 1037, 4937, 1012, 102]]  # BERT's, uncased
    assert (text.num_groups, text.pooling, text.feature_dim) == (6, "cls", 768)
    assert (image.num_groups, image.feature_dim) == (4, 2048)
    assert image(random_pictures(224, 1)).shape == (1, 2048)
    assert text(text.tokenize(TEXTS)).shape == (3, 768)
