"""Low-rank updates: where they go, what they compute, and that nothing is left of them when they are merged."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_clips import clip_folder
from tiny_towers import TINY_BERT, random_pictures, randomized
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.nn.utils import parametrize

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.freezing import Trained
from clipkit.models.image import TimmImageTower
from clipkit.models.lora import EVERYWHERE, StackedUpdates, add_lora, lora_notes, merge_lora
from clipkit.models.model import Model
from clipkit.models.open_clip_towers import OpenClipImageTower, OpenClipTextTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower
from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.transformers_clip import transformers_clip

SIDE = 32
TEXTS = ["a cat", "two dogs on a mat", "three"]
CLIP_VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE}
CLIP_TEXT = {"context_length": 24, "vocab_size": 259, "width": 32, "heads": 2, "layers": 2}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 259, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
VIT = {"patch_size": 8}
EVA = {**VIT, "depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "patch_size": 4}


def timm_tower(name: str, **arguments: Any) -> Any:
    return TimmImageTower(name, image_size=SIDE, model_args=arguments)


def causal_text() -> Any:
    return CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=40)


def bert(config: dict[str, Any] = TINY_BERT) -> Any:
    return TransformersTextTower(config=config)


def open_clip_towers() -> tuple[Any, Any]:
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": SIDE}
    return OpenClipImageTower(16, CLIP_VISION, **pixels), OpenClipTextTower(16, CLIP_TEXT, tokenizer="bytes")


TOWERS = {  # by what holds queries, keys and values
    "timm vit, own text": lambda: (timm_tower("test_vit", **VIT), causal_text()),
    "efficientnet, bert": lambda: (timm_tower("test_efficientnet"), bert()),
    "swin, distilbert": lambda: (timm_tower("swin_tiny_patch4_window7_224", **SWIN), bert(DISTILBERT)),
    "swin v2, bert": lambda: (timm_tower("swinv2_tiny_window8_256", **SWIN), bert()),
    "eva, bert": lambda: (timm_tower("eva02_tiny_patch14_224", **EVA), bert()),
    "convnext, bert": lambda: (timm_tower("test_convnext"), bert()),
    "open_clip": open_clip_towers,
}


def encoder_of(kind: str, folder: Path) -> DualEncoder:
    torch.manual_seed(0)
    if kind == "transformers clip":
        return transformers_clip(str(clip_folder(folder / "clip"))).eval()
    image, text = TOWERS[kind]()
    return randomized(DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=16))).eval()


@pytest.fixture(params=[*TOWERS, "transformers clip"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> DualEncoder:
    return encoder_of(request.param, tmp_path)


def embeddings(encoder: DualEncoder, trained: Trained = EVERYWHERE) -> tuple[Tensor, Tensor]:
    """With gradient through what is trained."""
    image = encoder.project_image(trained.image_features(encoder, random_pictures(SIDE)))
    return image, encoder.project_text(trained.text_features(encoder, encoder.tokenize(TEXTS)))


@torch.no_grad()
def embeds(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    return encoder.encode_image(random_pictures(SIDE)), encoder.encode_text(encoder.tokenize(TEXTS))


def updates(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def train_a_little(encoder: DualEncoder) -> None:
    """Weights as training would leave them: every update does something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in updates(encoder).values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)


def test_nothing_changes_at_first_everything_learns_and_merging_leaves_an_ordinary_model(
    encoder: DualEncoder, tmp_path: Path
) -> None:
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    before, spec = embeds(encoder), encoder.spec()
    add_lora(encoder, dropout=0.0)
    # torch's attention may take a fused path while its weights are plain: it rounds otherwise
    rounding = 1e-6 if isinstance(encoder.text, OpenClipTextTower) else 0.0
    assert all((old - new).abs().max() <= rounding for old, new in zip(before, embeds(encoder), strict=True))
    assert {name.split(".")[0] for name in updates(encoder)} == {"image", "text"}

    encoder.train()
    train_a_little(encoder)  # where B is zero, A has no gradient
    sum(part.square().mul(torch.arange(part.shape[1])).sum() for part in embeddings(encoder)).backward()
    assert [name for name, p in updates(encoder).items() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad and p.grad is not None] == []

    trained = embeds(encoder.eval())
    assert all((old - new).abs().max() > 1e-3 for old, new in zip(before, trained, strict=True))
    merge_lora(encoder)
    merged = embeds(encoder)
    assert all((old - new).abs().max() <= 1e-6 for old, new in zip(trained, merged, strict=True))
    assert {name: value.shape for name, value in encoder.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }
    assert encoder.spec() == spec
    save_model(Model(encoder), tmp_path / "model")
    loaded = embeds(load_model(tmp_path / "model").encoder)
    assert all((old - new).abs().max() <= rounding for old, new in zip(merged, loaded, strict=True))


@pytest.mark.parametrize(
    ("kind", "image", "text"),
    [
        ("timm vit, own text", ("attn.qkv",), ("qkv",)),
        (
            "efficientnet, bert",
            ("conv_pw", "conv_pwl", "conv_head", "conv_reduce", "conv_expand"),  # the last two squeeze and excite
            ("query", "key", "value"),
        ),
        ("swin, distilbert", ("attn.qkv",), ("q_lin", "k_lin", "v_lin")),
        ("transformers clip", ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
        ("open_clip", ("attn",), ("attn",)),
    ],
)
def test_queries_keys_and_values_of_all_blocks_are_updated_and_nothing_else(
    kind: str, image: tuple[str, ...], text: tuple[str, ...], tmp_path: Path
) -> None:
    encoder = encoder_of(kind, tmp_path)
    blocks = {"image": encoder.image.num_groups, "text": encoder.text.num_groups}
    add_lora(encoder)
    for tower, wanted in (("image", image), ("text", text)):
        names = [name for name in updates(encoder) if name.startswith(tower)]
        layers = {name.split(".parametrizations")[0].split(".lora_")[0] for name in names}
        assert {last for layer in layers for last in wanted if layer.endswith(f".{last}")} == set(wanted)
        assert all(layer.endswith(tuple(f".{last}" for last in wanted)) for layer in layers), layers
        assert len(names) == 2 * len(layers)  # an A and a B
        if "conv_head" not in wanted:
            assert len(layers) >= blocks[tower] * len(wanted)
    assert not encoder.logit_scale.requires_grad


def test_towers_without_attention_are_named() -> None:
    said = lora_notes(encoder_of("efficientnet, bert", Path()))
    assert len(said) == 1
    assert "image tower (EfficientNet) has no attention: LoRA updates its 11 1×1 convolutions" in said[0]
    assert "linear layers" in lora_notes(encoder_of("convnext, bert", Path()))[0]
    assert lora_notes(encoder_of("swin, distilbert", Path())) == []


# Three layers of their own, with W + (α/r)·BA written out, are the reference for weights that hold all three.
R, ALPHA, SCALE = 2, 3.0, 1.5


def separate(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """[…, F] -> queries, keys and values, each of its own layer beside its own update."""
    parts = zip(weight.chunk(3), bias.chunk(3), a, b, strict=True)
    return tuple(linear(x, w, c) + SCALE * linear(linear(x, down), up) for w, c, down, up in parts)


def with_updates(module: nn.Module, weight: str) -> tuple[Tensor, Tensor]:
    """Random updates of three parts; A and B as leaves that the reference may use."""
    added = StackedUpdates(getattr(module, weight), parts=3, r=R, alpha=ALPHA, dropout=0.25)
    nn.init.normal_(added.b)
    parametrize.register_parametrization(module, weight, added)
    return tuple(part.detach().clone().requires_grad_() for part in (added.a, added.b))  # type: ignore[return-value]


def assert_same(module: nn.Module, weight: str, found: Tensor, wanted: Tensor, x: Tensor, leaves: Any) -> None:
    """Outputs, and gradients in the input, in A and in B."""
    own = module.parametrizations[weight][0]  # type: ignore[index,union-attr]
    factor = torch.randn(found.shape, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    assert (found - wanted).abs().max() <= 1e-6
    got = torch.autograd.grad((found * factor).sum(), [x, own.a, own.b])
    for one, other in zip(got, torch.autograd.grad((wanted * factor).sum(), [x, *leaves]), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-6


def test_a_fused_layer_has_the_outputs_and_gradients_of_three_layers_with_updates_of_their_own() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 3 * 16).double().eval()
    x = torch.randn(5, 7, 24, dtype=torch.double, requires_grad=True)
    a, b = with_updates(layer, "weight")
    base = layer.parametrizations.weight.original.detach()  # type: ignore[union-attr]
    wanted = torch.cat(separate(x, base, layer.bias.detach(), a, b), -1)
    assert_same(layer, "weight", layer(x), wanted, x, (a, b))


def test_torchs_attention_has_the_outputs_and_gradients_of_three_layers_with_updates_of_their_own() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(5, 7, 16, dtype=torch.double, requires_grad=True)
    a, b = with_updates(attention, "in_proj_weight")
    base = attention.parametrizations.in_proj_weight.original.detach()  # type: ignore[union-attr]
    heads = [part.unflatten(-1, (4, 4)).transpose(1, 2) for part in separate(x, base, attention.in_proj_bias, a, b)]
    mixed = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    assert_same(attention, "in_proj_weight", attention(x, x, x)[0], attention.out_proj(mixed), x, (a, b))


@pytest.mark.parametrize("kind", ["efficientnet, bert", "open_clip"])
def test_merged_weights_are_the_published_formula(kind: str, tmp_path: Path) -> None:
    """Every changed matrix is W + (α/r)·BA, of the updates as peft and we store them."""
    encoder = encoder_of(kind, tmp_path)
    base = {name: value.clone() for name, value in encoder.state_dict().items()}
    add_lora(encoder, r=R, alpha=ALPHA)
    train_a_little(encoder)
    expected, state = {}, encoder.state_dict()
    for name in updates(encoder):
        if name.endswith("lora_A.lora.weight"):
            down, up = (state[name.replace("lora_A", side)].double().flatten(1) for side in ("lora_A", "lora_B"))
            weight = name.replace("lora_A.lora.weight", "weight")
            expected[weight] = base[weight].double() + SCALE * (up @ down).view(base[weight].shape)
        elif name.endswith(".0.a"):
            down, up = state[name].double(), state[name[:-1] + "b"].double()
            weight = name.replace("parametrizations.", "").removesuffix(".0.a")
            expected[weight] = base[weight].double() + SCALE * torch.cat([u @ d for u, d in zip(up, down, strict=True)])
    merge_lora(encoder.train())  # dropout has no part in it
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, base[name])}
    assert changed == set(expected)
    for name in changed:
        assert (encoder.state_dict()[name] - expected[name]).abs().max() <= 1e-6, name


def test_dropout_leaves_out_input_features_of_each_part_in_training_alone() -> None:
    torch.manual_seed(0)
    added = StackedUpdates(torch.zeros(12, 4000), parts=3, r=R, alpha=ALPHA, dropout=0.25)
    nn.init.normal_(added.b)
    whole = added.eval()(torch.zeros(12, 4000)).detach()
    parts = added.train()(torch.zeros(12, 4000)).detach().unflatten(0, (3, 4))
    gone = (parts == 0).all(1)  # [3, 4000]
    assert ((gone.double().mean(1) - 0.25).abs() < 0.03).all()
    assert not torch.equal(gone[0], gone[1])
    kept = ~gone[:, None].expand_as(parts)
    assert torch.allclose(parts[kept], whole.unflatten(0, (3, 4))[kept] / 0.75)
    assert torch.equal(added.eval()(torch.zeros(12, 4000)), whole)


@pytest.mark.parametrize("kind", ["timm vit, own text", "transformers clip"])
def test_the_last_groups_alone_can_be_updated(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    before = embeds(encoder)
    trained = Trained(1, 0, norms="final", projections=True, logit_scale=False)
    add_lora(encoder, trained)
    last = encoder.image.num_groups - 1
    own = {name for name in updates(encoder) if "lora" in name or "parametrizations" in name}
    assert own
    assert all(f".{last}." in name for name in own)
    norms = {name for name in updates(encoder) if "norm" in name}  # peft freezes what it finds
    assert any(name.startswith("image.model") for name in norms)
    image, text = embeddings(encoder.train(), trained)
    assert all(map(torch.equal, before, (image, text)))
    (image.square() * torch.arange(16)).sum().backward()
    assert all(p.grad is not None for name, p in updates(encoder).items() if name in own)


def test_updates_begin_alike_by_torchs_generator() -> None:
    states = []
    for seed in (1, 1, 2):
        encoder = encoder_of("timm vit, own text", Path())
        torch.manual_seed(seed)
        add_lora(encoder)
        states.append(torch.cat([p.detach().flatten() for p in updates(encoder).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_what_cannot_be_updated_is_said() -> None:
    encoder = encoder_of("timm vit, own text", Path())
    with pytest.raises(UserError, match="needs a group of a tower to update"):
        add_lora(encoder, Trained())
    with pytest.raises(UserError, match=r"image_groups=99: this tower has \d+ groups"):
        add_lora(encoder, Trained(99, 0))


def test_without_peft_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "clipkit-train\[lora\]"'):
        lora_notes(encoder_of("efficientnet, bert", Path()))
