"""The causal text tower: read at the end token, blind to what follows, no work for padding."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_towers import gradients, randomized, tiny_encoder
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from clipkit.errors import UserError
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower, TextTransformer
from clipkit.models.tokenizers import TransformersTokenizer

TEXTS = ["a cat", "two dogs under a tree", "z"]
SIZES: dict[str, Any] = {"width": 48, "layers": 3, "heads": 4, "mlp": 96, "max_length": 77}


def tower(**options: Any) -> CausalTextTower:
    torch.manual_seed(0)
    model = CausalTextTower(**{"tokenizer": "bytes", **SIZES, **options})
    return randomized(model).eval()


def hidden_states(model: CausalTextTower, ids: Tensor) -> Tensor:
    """What enters the final norm, [M, L, F]."""
    return model.trunk({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, groups=0, end=True)["hidden"]


@torch.no_grad()
def test_the_feature_is_the_normed_state_of_the_end_token() -> None:
    model = tower()
    tokens = model.tokenize(TEXTS)
    hidden = hidden_states(model, tokens["input_ids"])
    for row, text in enumerate(TEXTS):
        end = len(text.encode()) + 1  # after the start token
        assert int(tokens["input_ids"][row, end]) == model.tokenizer.eos_id
        torch.testing.assert_close(model(tokens)[row], model.model.final_norm(hidden[row, end]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_nothing_after_the_end_token_changes_the_feature() -> None:
    model = tower()
    tokens = model.tokenize(TEXTS)
    features = model(tokens)
    longer = {name: pad(value, (0, 40)) for name, value in tokens.items()}
    torch.testing.assert_close(model(longer), features, atol=1e-6, rtol=0)
    alone = torch.cat([model(model.tokenize([text])) for text in TEXTS])
    torch.testing.assert_close(alone, features, atol=1e-6, rtol=0)
    noise = torch.randint(3, 259, longer["input_ids"].shape, generator=torch.Generator().manual_seed(1))
    longer["input_ids"] = torch.where(longer["attention_mask"].bool(), longer["input_ids"], noise)
    torch.testing.assert_close(model(longer), features, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_token_changes_its_own_state_and_later_ones_only() -> None:
    model = tower()
    ids = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(1))
    before = hidden_states(model, ids)
    ids[:, 12] = (ids[:, 12] + 1) % 250 + 3
    moved = (hidden_states(model, ids) - before).abs().amax(-1)
    assert moved[:, :12].max() < 1e-6
    assert moved[:, 12:].min() > 1e-4


@torch.no_grad()
def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_here() -> None:
    of_bytes = byte_tokenizer(77)
    of_bytes.padding_side = "left"
    model = tower(tokenizer=TransformersTokenizer(of_bytes, 77))
    torch.testing.assert_close(model(model.tokenize(TEXTS)), tower()(tower().tokenize(TEXTS)))


@torch.no_grad()
def test_short_captions_cost_what_their_own_tokens_cost() -> None:
    model = tower(max_length=77)
    captions = ["fourteen bytes", "14 bytes again", "short"]

    def flops(tokens: dict[str, Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            model(tokens)
        return counter.get_total_flops()

    ids = torch.randint(3, 259, (3, 77), generator=torch.Generator().manual_seed(1))
    tokens = model.tokenize(captions)
    of_16 = flops({"input_ids": ids[:, :16], "attention_mask": torch.ones(3, 16, dtype=torch.long)})
    of_77 = flops({"input_ids": ids, "attention_mask": torch.ones(3, 77, dtype=torch.long)})
    assert flops(tokens) == of_16
    assert of_77 > 4 * of_16


def test_a_text_beyond_the_limit_is_cut_and_keeps_its_end_token() -> None:
    model = tower(max_length=10)
    tokens = model.tokenize(["12345678", "12345678 and what comes later"])
    assert tokens["input_ids"].shape == (2, 10)
    assert tokens["input_ids"][:, -1].tolist() == [model.tokenizer.eos_id] * 2
    with torch.no_grad():
        features = model(tokens)
    assert torch.equal(features[0], features[1])


@pytest.mark.parametrize("options", [{}, {"heads": 5}, {"heads": 3, "head_width": 8}], ids=str)
def test_a_tower_cut_at_any_layer_gives_feature_and_gradients_of_the_whole(options: dict[str, Any]) -> None:
    model = tower(**options)
    tokens = model.tokenize(TEXTS)
    weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(3))
    feature = model(tokens)
    (feature * weight).sum().backward()
    whole = gradients(model)
    for groups in range(4):
        with torch.no_grad():
            state = model.trunk(tokens, groups=groups, end=True)
        found = model.tail(state, groups=groups)
        assert torch.equal(found, feature)
        (found * weight).sum().backward()
        kept = gradients(model)
        blocks = tuple(f"model.blocks.{index}." for index in range(3 - groups, 3))
        assert set(kept) == {name for name in whole if name.startswith((*blocks, "model.final_norm."))}
        for name, gradient in kept.items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "inner"),
    [({}, 48), ({"heads": 5}, 5 * 64), ({"heads": 12, "width": 512}, 768), ({"heads": 3, "head_width": 8}, 24)],
)
def test_heads_share_the_width_or_are_64_wide(options: dict[str, Any], inner: int) -> None:
    model = tower(layers=1, **options)
    block = model.model.blocks[0]
    assert block.heads * block.head_width == inner
    assert block.qkv.out_features == 3 * inner
    assert block.out.in_features == inner
    assert model(model.tokenize(TEXTS)).shape == (3, model.feature_dim)


@torch.no_grad()
def test_a_block_is_pre_norm_attention_and_a_gelu_network() -> None:
    model = tower(heads=5, layers=1)
    block = model.model.blocks[0]
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(4))
    later = torch.full((7, 7), float("-inf")).triu(1)
    query, key, value = block.qkv(block.norm1(x)).split(5 * 64, -1)
    heads = []
    for index in range(5):
        q, k, v = (part[..., 64 * index : 64 * (index + 1)] for part in (query, key, value))
        heads.append(((q @ k.transpose(1, 2)) / 8 + later).softmax(-1) @ v)
    middle = x + block.out(torch.cat(heads, -1))
    expected = middle + block.down(torch.nn.functional.gelu(block.up(block.norm2(middle))))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_initial_values_have_the_scales_of_clip() -> None:
    torch.manual_seed(0)
    width, layers = 256, 6
    model = TextTransformer(2000, 64, width=width, layers=layers, heads=4, mlp=1024)
    ends = width**-0.5 * (2 * layers) ** -0.5
    expected = {"qkv": width**-0.5, "out": ends, "up": (2 * width) ** -0.5, "down": ends}
    for block in model.blocks:
        for name, std in expected.items():
            linear = getattr(block, name)
            assert linear.weight.std().item() == pytest.approx(std, rel=0.05), name
            assert not linear.bias.any()
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.position_embedding.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"heads": 5}, {"heads": 3, "head_width": 8, "standardize": True}], ids=str)
def test_a_saved_tower_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tower(**options)
    if model.standardize is not None:
        model.standardize.fit(2 + torch.randn(20, 48, generator=torch.Generator().manual_seed(5)))
    encoder = DualEncoder(tiny_encoder().image, model, projection=partial(LinearProjection, embed_dim=8)).eval()
    save_model(Model(encoder), tmp_path / "model")
    loaded = load_model(tmp_path / "model").encoder
    texts = [*TEXTS, "", "déjà vu — 猫", "words " * 40]
    assert torch.equal(loaded.tokenize(texts)["input_ids"], encoder.tokenize(texts)["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded.text(loaded.tokenize(texts)), model(model.tokenize(texts)))


def test_it_has_no_pretrained_weights_and_needs_a_tokenizer() -> None:
    with pytest.raises(UserError, match="backbone=checkpoint"):
        CausalTextTower(tokenizer="bytes", pretrained=True)
    with pytest.raises(UserError, match="tokenizer=FOLDER"):
        CausalTextTower()
