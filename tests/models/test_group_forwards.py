"""Groups that are computed again in backward, or compiled: the same gradients from less memory or in less time."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from small_clips import clip_model
from tiny_towers import gradients, random_pictures, randomized
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.group_forwards import change_forwards
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower, plain_config
from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.transformers_clip import TransformersImageTower

SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 80, "hidden_dropout_prob": 0.2, "attention_dropout": 0.2}
DISTIL = {"vocab_size": 259, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "dropout": 0.2}
TEXTS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "distilbert": DISTIL,
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "gpt2": {"vocab_size": 259, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 80},  # with a cache
    "llama": {**SIZES, "head_dim": 8, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2},  # likewise
    "clip_text_model": {**SIZES, "bos_token_id": 1, "eos_token_id": 2},
}
IMAGES: dict[str, dict[str, Any]] = {
    "test_vit": {"model_args": {"patch_size": 8, "proj_drop_rate": 0.2, "drop_path_rate": 0.2}},
    "test_efficientnet": {},  # BatchNorm
    "test_convnext": {},
    "eva02_tiny_patch14_224": {"model_args": {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 2}},
}


def image_tower(name: str) -> Any:
    if name == "clip":
        vision = clip_model().vision_model
        vision.config.attention_dropout = 0.2
        return TransformersImageTower(plain_config(vision.config), model=vision)
    return TimmImageTower(name, image_size=32, **IMAGES[name])


def encoder_of(image: str = "test_vit", text: str = "causal") -> DualEncoder:
    torch.manual_seed(0)
    words: Any = (
        CausalTextTower(width=32, layers=3, heads=4, mlp=64, tokenizer="bytes")
        if text == "causal"
        else TransformersTextTower(config={"model_type": text, **TEXTS[text]}, tokenizer="bytes", max_length=60)
    )
    encoder = DualEncoder(image_tower(image), words, projection=partial(LinearProjection, embed_dim=16))
    return randomized(encoder).double()


def step(encoder: DualEncoder, trained: Trained) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a step, with every dropout on."""
    torch.manual_seed(7)
    image = encoder.project_image(trained.image_features(encoder, random_pictures(32, 5)))
    tokens = encoder.tokenize([f"text number {i}" * (i + 1) for i in range(5)])
    tokens = {name: value[:, :30] for name, value in tokens.items()}
    text = encoder.project_text(trained.text_features(encoder, tokens))
    loss = (encoder.logit_scale.exp() * image @ text.T).log_softmax(1).square().mean()
    loss.backward()
    return loss.detach(), gradients(encoder)


TOWERS = [*((image, "causal") for image in (*IMAGES, "clip")), *(("test_vit", text) for text in TEXTS)]


@pytest.mark.parametrize(("image", "text"), TOWERS)
@pytest.mark.parametrize(
    "trained", [Trained(image_groups="all", text_groups="all"), Trained(image_groups=1, text_groups=2)], ids=str
)
def test_groups_computed_again_give_the_same_gradients_and_statistics(image: str, text: str, trained: Trained) -> None:
    found = []
    for recompute in (False, True):
        encoder = encoder_of(image, text).train()
        freeze(encoder, trained)
        change_forwards(encoder, [trained], recompute=recompute)
        found.append((*step(encoder, trained), encoder.state_dict()))
    (loss, wanted, state), (again, got, after) = found
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)  # fused attention rounds as memory is aligned
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-14, msg=name)
    assert list(state) == list(after)
    assert all(torch.equal(after[name], value) for name, value in state.items())


@pytest.mark.parametrize("text", ["causal", "bert"])
def test_trained_groups_run_twice_and_frozen_ones_once(text: str) -> None:
    encoder, trained = encoder_of("test_vit", text).train(), Trained(image_groups=1, text_groups=1)
    freeze(encoder, trained)
    change_forwards(encoder, [trained], recompute=True)
    towers: dict[str, Any] = {"image": encoder.image, "text": encoder.text}
    groups = {name: tower.group_modules(tower.num_groups)[: tower.num_groups] for name, tower in towers.items()}
    count: dict[tuple[str, int], int] = {}

    def counted(key: tuple[str, int], linear: nn.Module) -> None:
        count[key] = 0
        linear.register_forward_pre_hook(lambda *_: count.update({key: count[key] + 1}))

    for name, modules in groups.items():
        for index, group in enumerate(modules):
            counted((name, index), next(part for part in group.modules() if isinstance(part, nn.Linear)))
    step(encoder, trained)
    for name, modules in groups.items():
        assert [count[name, index] for index in range(len(modules))] == [1] * (len(modules) - 1) + [2]
    count.update(dict.fromkeys(count, 0))
    with torch.no_grad():
        encoder.encode_image(random_pictures(32, 2))
    assert {count[key] for key in count if key[0] == "image"} == {1}


def test_less_is_kept_for_backward() -> None:
    trained, sizes = Trained(image_groups="all", text_groups="all"), []
    for recompute in (False, True):
        encoder = encoder_of().train()
        freeze(encoder, trained)
        change_forwards(encoder, [trained], recompute=recompute)
        kept: dict[int, int] = {}

        def pack(value: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            features = trained.image_features(encoder, random_pictures(32, 16))
        weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        sizes.append(sum(size for place, size in kept.items() if place not in weights))
        assert features.requires_grad
    assert sizes[1] < sizes[0] / 5


def test_a_tower_without_groups_is_refused_where_it_is_trained() -> None:
    encoder = encoder_of()
    encoder.image = TimmImageTower("test_nfnet", image_size=32)
    assert encoder.image.num_groups == 0
    with pytest.raises(UserError, match=r"gradient_checkpointing=true: this image tower \(NormFreeNet\)"):
        change_forwards(encoder, [Trained(image_groups="all")], recompute=True)
    change_forwards(encoder, [Trained(text_groups=1)], recompute=True)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"trainer.compile=true: no C\+\+ compiler"):
        change_forwards(encoder_of(), [], compiled=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("text", ["causal", "bert"])
def test_compiled_groups_give_the_same_loss_and_gradients_under_the_same_names(text: str, recompute: bool) -> None:
    trained, found = Trained(image_groups=1, text_groups="all"), []
    for compiled in (False, True):
        encoder = encoder_of("test_vit", text).float().train()
        for module in encoder.modules():  # compiled code draws other random numbers
            if isinstance(module, nn.Dropout) or hasattr(module, "drop_prob"):
                module.p = module.drop_prob = 0.0
        freeze(encoder, trained)
        names = list(encoder.state_dict())
        change_forwards(encoder, [trained], recompute=recompute, compiled=compiled)
        assert list(encoder.state_dict()) == names
        found.append(step(encoder, trained))
    (loss, wanted), (got_loss, got) = found
    assert abs(float(loss - got_loss)) <= 1e-5 * abs(float(loss))
    whole = torch.stack([value.norm() for value in wanted.values()]).norm()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (got[name] - value).norm() <= 1e-4 * max(value.norm(), 1e-3 * whole), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_every_block_is_compiled_however_many_there_are() -> None:
    encoder = encoder_of()
    encoder.image = TimmImageTower("test_vit", image_size=32, model_args={"depth": 10, "drop_path_rate": 0.3})
    freeze(encoder.train(), Trained(image_groups="all"))
    change_forwards(encoder, [Trained(image_groups="all")], compiled=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    encoder.image(random_pictures(32)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 10
    assert not counters["unimplemented"]
