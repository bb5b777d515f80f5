"""Transformers encoders cut at any layer compute what the library computes, and train what the whole would."""

from typing import Any

import pytest
import torch
from tiny_towers import gradients, randomized, tiny_encoder
from torch import Tensor

from clipkit.errors import UserError
from clipkit.models.freezing import Trained, freeze
from clipkit.models.text import TransformersTextTower

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
DISTIL = {"vocab_size": 259, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 80}
T5 = {"vocab_size": 259, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4, "pad_token_id": 0}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
ALTERNATING = {"local_attention": 6, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
DECODER = {"head_dim": 8, "num_key_value_heads": 2, **ENDS}
TURNS = ["sliding_attention", "full_attention"] * 2
SPLIT: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": DISTIL,
    "mpnet": SIZES,  # a layer returns a tuple
    "electra": {**SIZES, "embedding_size": 24},
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "deberta-v2": {**SIZES, **DISENTANGLED, "conv_kernel_size": 3},  # adds a convolution after the first layer
    "modernbert": {**SIZES, **ALTERNATING, **ENDS},  # each layer says which mask it takes
    "clip_text_model": {**SIZES, **ENDS},
    "gpt2": {"vocab_size": 259, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 80},
    "llama": {**SIZES, **DECODER},  # loops over as many layers as its configuration counts
    "gemma3_text": {
        **SIZES,
        **DECODER,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
WHOLE = {
    "albert": {**SIZES, "embedding_size": 16},  # one layer, called again and again
    "t5": {**T5, "eos_token_id": 2, "decoder_start_token_id": 0},  # the first layer makes what the others need
}
TEXTS = ["a cat", "two dogs under a tree, in the rain", "z"]


def tower(kind: str, **options: Any) -> TransformersTextTower:
    torch.manual_seed(0)
    config = {"model_type": kind, **{**SPLIT, **WHOLE}[kind]}
    return randomized(TransformersTextTower(config=config, tokenizer="bytes", max_length=60, **options)).eval()


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[: int(count)].mean(0) for row, count in zip(hidden, mask.sum(1), strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("kind", [*SPLIT, *WHOLE])
def test_the_feature_is_the_librarys_hidden_state_pooled(kind: str) -> None:
    model = tower(kind)
    tokens = model.tokenize(TEXTS)
    hidden = model.model(**tokens).last_hidden_state
    mask = tokens["attention_mask"]
    torch.testing.assert_close(model(tokens), mean(hidden, mask), atol=1e-5, rtol=1e-5)
    model.pooling = "cls"
    assert torch.equal(model(tokens), hidden[:, 0])
    model.pooling = "eos"
    assert torch.equal(model(tokens), hidden[torch.arange(3), mask.sum(1) - 1])


@torch.no_grad()
@pytest.mark.parametrize("kind", [*SPLIT, *WHOLE])
def test_a_text_has_the_same_feature_alone_and_in_a_batch(kind: str) -> None:
    model = tower(kind)
    together = model(model.tokenize(TEXTS))
    alone = torch.cat([model(model.tokenize([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("kind", SPLIT)
def test_an_encoder_cut_at_any_layer_gives_the_feature_to_the_bit(kind: str) -> None:
    model = tower(kind)
    tokens = model.tokenize(TEXTS)
    whole = model(tokens)
    assert model.num_groups == 4
    for groups in range(5):
        assert torch.equal(model.tail(model.trunk(tokens, groups=groups, end=True), groups=groups), whole), groups
    assert torch.equal(model.tail(model.trunk(tokens, groups=0), groups=0), whole)
    assert torch.equal(model(tokens), whole)  # and is whole again


@pytest.mark.parametrize("kind", SPLIT)
def test_the_last_layers_get_the_gradients_of_the_unsplit_encoder(kind: str) -> None:
    model = tower(kind)
    tokens = model.tokenize(TEXTS)
    weight = torch.randn(3, model.feature_dim, generator=torch.Generator().manual_seed(3))
    (model(tokens) * weight).sum().backward()
    whole = gradients(model)
    for groups in (1, 3, 4):
        trained = {id(parameter) for module in model.group_modules(groups) for parameter in module.parameters()}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        with torch.no_grad():
            state = model.trunk(tokens, groups=groups)
        (model.tail(state, groups=groups) * weight).sum().backward()
        found = gradients(model)
        assert set(found) == names & set(whole)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "pooling", "end"),
    [
        ("bert", "mean", set()),
        ("bert", "pooler", {"pooler.dense.weight", "pooler.dense.bias"}),
        ("modernbert", "mean", {"final_norm.weight"}),
        ("clip_text_model", "mean", {"final_layer_norm.weight", "final_layer_norm.bias"}),
        ("gpt2", "mean", {"ln_f.weight", "ln_f.bias"}),
        ("llama", "mean", {"norm.weight"}),
    ],
)
def test_what_follows_the_last_layer_is_trained_with_it(kind: str, pooling: str, end: set[str]) -> None:
    model = tower(kind, pooling=pooling)
    tokens = model.tokenize(TEXTS)
    with torch.no_grad():
        state = model.trunk(tokens, groups=0, end=True)
    state["hidden"].requires_grad_(True)
    model.tail(state, groups=0).square().sum().backward()
    assert set(gradients(model.model)) == end
    last = {id(parameter) for module in model.group_modules(1) for parameter in module.parameters()}
    assert {id(parameter) for name, parameter in model.model.named_parameters() if name in end} <= last
    assert {id(p) for module in model.end_modules() for p in module.parameters()} <= last


@pytest.mark.parametrize("kind", WHOLE)
def test_an_encoder_that_cannot_be_cut_is_frozen_or_trained_as_a_whole(kind: str) -> None:
    encoder = tiny_encoder(text={"model_type": kind, **WHOLE[kind]})
    assert encoder.text.num_groups == 0
    freeze(encoder, Trained(text_groups="all"))
    assert all(parameter.requires_grad for parameter in encoder.text.parameters())
    freeze(encoder, Trained())
    assert not any(parameter.requires_grad for parameter in encoder.text.parameters())
    for trained in (Trained(text_groups=1), Trained(norms="final")):
        with pytest.raises(UserError, match=r"cannot be split; give text_groups=0 or all"):
            freeze(encoder, trained)


def test_finding_out_whether_an_encoder_can_be_cut_leaves_its_modes_alone() -> None:
    model = tower("mpnet").train()
    model.model.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    assert model.num_groups == 4
    assert [module.training for module in model.modules()] == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_error_inside_a_half_leaves_the_encoder_whole() -> None:
    model = tower("bert")
    tokens = model.tokenize(TEXTS)
    whole = model(tokens)
    with pytest.raises(RuntimeError):
        model.tail({**tokens, "hidden": torch.zeros(3, 2, 5)}, groups=2)
    assert torch.equal(model(tokens), whole)
    assert not any("forward" in vars(module) for module in model.modules())
