"""Freezing: what is frozen does not move by a bit, what is trained does."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny_towers import TINY_BERT, gradients, random_pictures, randomized, tiny_encoder
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower

CHOICES = [
    Trained(),
    Trained(image_groups=1, text_groups=1),
    Trained(image_groups=2, logit_scale=False),
    Trained(text_groups=2, projections=False),
    Trained(image_groups="all", text_groups="all"),
    Trained(image_groups="all", depthwise=False),
    Trained(norms="final"),
    Trained(norms="all"),
    Trained(image_groups=1, text_groups=1, norms="final"),
    Trained(image_groups=1, norms="all"),
]
NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


def train_one_step(encoder: DualEncoder) -> None:
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tokens = encoder.tokenize([f"text number {i}" for i in range(6)])
    cosines = encoder.encode_text(tokens) @ encoder.project_image(encoder.image(pixels)).T
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.5)
    mse_loss(encoder.logit_scale.exp() * cosines, torch.eye(6)).backward()
    optimizer.step()


def groups_of(name: str) -> str:
    """The part of the encoder that a parameter belongs to, read from its name."""
    parts = name.split(".")
    if name.startswith("image.model.blocks."):
        return f"image group {parts[3]}"
    if name.startswith(("image.model.conv_head", "image.model.bn2")):
        return "image end"
    if name.startswith("text.model.encoder.layer."):
        return f"text group {parts[4]}"
    return parts[0] if "projection" in name or name == "logit_scale" else f"{parts[0]} stem"


@pytest.mark.parametrize("trained", CHOICES, ids=str)
def test_a_training_step_leaves_everything_frozen_as_it_was_to_the_bit(trained: Trained) -> None:
    encoder = tiny_encoder().train()
    freeze(encoder, trained)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    may_move = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    owners = {name.rpartition(".")[0] for name in may_move}  # buffers of trained norms may move too
    train_one_step(encoder)
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved - may_move <= {name for name in before if name.rpartition(".")[0] in owners}
    assert may_move & moved
    frozen_buffers = {name for name, _ in encoder.named_buffers() if name.rpartition(".")[0] not in owners}
    assert not moved & frozen_buffers


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (Trained(), {"image_projection", "text_projection", "logit_scale"}),
        (Trained(projections=False, logit_scale=False), set()),
        (Trained(image_groups=1, projections=False, logit_scale=False), {"image group LAST", "image end"}),
        (Trained(text_groups=1, projections=False), {"text group 1", "logit_scale"}),
        (Trained(text_groups=2, projections=False, logit_scale=False), {"text group 0", "text group 1"}),
    ],
    ids=["heads", "nothing", "one image group", "one text group", "two text groups"],
)
def test_the_last_groups_are_counted_from_the_end(trained: Trained, expected: set[str]) -> None:
    encoder = tiny_encoder()
    freeze(encoder, trained)
    found = {groups_of(name) for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    last = f"image group {len(encoder.image.model.blocks) - 1}"
    assert found == {last if name == "image group LAST" else name for name in expected}


def test_all_trains_every_weight_of_a_tower() -> None:
    encoder = tiny_encoder()
    freeze(encoder, Trained(image_groups="all", text_groups="all"))
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_freezing_again_forgets_the_previous_choice() -> None:
    encoder = tiny_encoder()
    freeze(encoder, Trained(image_groups="all", text_groups="all"))
    freeze(encoder, Trained())
    assert not any(parameter.requires_grad for parameter in [*encoder.image.parameters(), *encoder.text.parameters()])


def test_without_depthwise_only_depthwise_convolutions_stay_behind() -> None:
    encoder = tiny_encoder()
    freeze(encoder, Trained(image_groups="all", depthwise=False))
    depthwise = {
        name
        for name, module in encoder.image.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == 1 and module.out_channels > 1
    }
    frozen = {name.rpartition(".")[0] for name, p in encoder.image.named_parameters() if not p.requires_grad}
    assert depthwise
    assert frozen == depthwise


@pytest.mark.parametrize("trained", CHOICES, ids=str)
def test_frozen_modules_are_in_eval_mode_also_after_train(trained: Trained) -> None:
    encoder = tiny_encoder()
    freeze(encoder, trained)
    encoder.eval().train()
    assert encoder.training
    for name, module in encoder.named_modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            assert not any(part.training for part in module.modules()), name
        elif own and name.endswith("projection"):
            assert module.training, name


def test_a_frozen_tower_repeats_itself_in_training_mode() -> None:
    encoder = tiny_encoder()
    freeze(encoder, Trained())
    encoder.train()
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    tokens = encoder.tokenize(["a", "b c"])
    assert torch.equal(encoder.image(pixels), encoder.image(pixels))
    assert torch.equal(encoder.text(tokens), encoder.text(tokens))


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (Trained(image_groups=99), "image_groups=99: this tower has"),
        (Trained(text_groups=3), "text_groups=3: this tower has 2 groups"),
        (Trained(image_groups=-1), "image_groups=-1"),
        (Trained(text_groups="some"), "text_groups=some"),
    ],
    ids=str,
)
def test_groups_that_a_tower_does_not_have_are_a_user_error(trained: Trained, message: str) -> None:
    with pytest.raises(UserError, match=message):
        freeze(tiny_encoder(), trained)


def causal_encoder(image: str = "test_efficientnet", **options: Any) -> DualEncoder:
    """Towers that both have a final norm; BatchNorm keeps the statistics that it has."""
    torch.manual_seed(0)
    encoder = DualEncoder(
        TimmImageTower(image, image_size=64, **{"update_batchnorm": False, **options}),
        CausalTextTower(width=48, layers=3, heads=4, mlp=64, tokenizer="bytes", max_length=60),
        projection=partial(LinearProjection, embed_dim=16),
    )
    return randomized(encoder).train()


def batch(encoder: DualEncoder) -> tuple[Tensor, dict[str, Tensor]]:
    return random_pictures(64, 6), encoder.tokenize([f"text number {i}" for i in range(6)])


def step(encoder: DualEncoder, trained: Trained) -> dict[str, Tensor]:
    """The gradients of a training step, through the halves that training takes."""
    pixels, tokens = batch(encoder)
    image = encoder.project_image(trained.image_features(encoder, pixels))
    text = encoder.project_text(trained.text_features(encoder, tokens))
    mse_loss(encoder.logits(image, text), 10 * torch.eye(6)).backward()
    return gradients(encoder)


def norm_names(encoder: DualEncoder) -> set[str]:
    """Weights and biases of every norm in either tower."""
    norms = [(name, module) for name, module in encoder.named_modules() if isinstance(module, NORMS)]
    return {f"{name}.{own}" for name, module in norms for own, _ in module.named_parameters(recurse=False)}


IMAGE_ENDS = {
    "test_efficientnet": {"image.model.bn2.weight", "image.model.bn2.bias"},
    "test_vit": {"image.model.norm.weight", "image.model.norm.bias"},
    "test_convnext": {"image.model.head.norm.weight", "image.model.head.norm.bias"},
    "regnetx_002": set(),
}
TEXT_END = {"text.model.final_norm.weight", "text.model.final_norm.bias"}
PROJECTIONS = {"image_projection.linear.weight", "text_projection.linear.weight", "logit_scale"}


@pytest.mark.parametrize("image", IMAGE_ENDS)
def test_final_norms_are_those_after_the_last_group(image: str) -> None:
    encoder, trained = causal_encoder(image), Trained(norms="final")
    freeze(encoder, trained)
    assert set(step(encoder, trained)) == IMAGE_ENDS[image] | TEXT_END | PROJECTIONS


@pytest.mark.parametrize("image", IMAGE_ENDS)
def test_all_norms_are_every_norm_and_nothing_else(image: str) -> None:
    encoder, trained = causal_encoder(image), Trained(norms="all")
    freeze(encoder, trained)
    found = set(step(encoder, trained))
    assert len(norm_names(encoder)) > 20
    assert found == norm_names(encoder) | PROJECTIONS


@pytest.mark.parametrize("norms", ["final", "all"])
@pytest.mark.parametrize("image", ["test_efficientnet", "test_vit"])
def test_a_step_on_norms_moves_them_alone_and_no_statistics(image: str, norms: Any) -> None:
    encoder, trained = causal_encoder(image), Trained(norms=norms)
    freeze(encoder, trained)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pixels, tokens = batch(encoder)
    image_embeds = encoder.project_image(trained.image_features(encoder, pixels))
    text_embeds = encoder.project_text(trained.text_features(encoder, tokens))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.5)
    mse_loss(encoder.logits(image_embeds, text_embeds), 10 * torch.eye(6)).backward()
    optimizer.step()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    expected = IMAGE_ENDS[image] | TEXT_END if norms == "final" else norm_names(encoder)
    assert moved == expected | PROJECTIONS


@pytest.mark.parametrize(
    "trained",
    [
        Trained(norms="final"),
        Trained(norms="all"),
        Trained(image_groups=1, text_groups=1),
        Trained(image_groups=2, text_groups=3),
        Trained(image_groups=3, text_groups=2, norms="final"),
        Trained(image_groups=2, text_groups=1, norms="all"),
        Trained(image_groups="all", text_groups="all"),
    ],
    ids=str,
)
@pytest.mark.parametrize("image", ["test_efficientnet", "test_vit3"])
def test_training_in_two_halves_gives_the_features_and_gradients_of_the_whole(image: str, trained: Trained) -> None:
    encoder = causal_encoder(image)
    pixels, tokens = batch(encoder)
    freeze(encoder, trained)
    assert torch.equal(trained.image_features(encoder, pixels), encoder.image(pixels))
    torch.testing.assert_close(trained.text_features(encoder, tokens), encoder.text(tokens), rtol=1e-6, atol=1e-6)
    halves = step(encoder, trained)
    image_embeds, text_embeds = encoder.project_image(encoder.image(pixels)), encoder.encode_text(tokens)
    mse_loss(encoder.logits(image_embeds, text_embeds), 10 * torch.eye(6)).backward()
    whole = gradients(encoder)
    assert set(halves) == set(whole)
    for name, gradient in halves.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_text_groups_train_the_last_layers_of_a_transformers_encoder(groups: int) -> None:
    config = {**TINY_BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder, trained = randomized(tiny_encoder(text=config)).train(), Trained(text_groups=groups, image_groups=0)
    freeze(encoder, trained)
    pixels, tokens = random_pictures(32, 6), encoder.tokenize([f"text number {i}" for i in range(6)])
    images = encoder.encode_image(pixels)
    mse_loss(encoder.project_text(trained.text_features(encoder, tokens)), images.detach()).backward()
    halves = gradients(encoder)
    mse_loss(encoder.encode_text(tokens), images.detach()).backward()
    whole = gradients(encoder)
    layers = {name.split(".")[4] for name in halves if name.startswith("text.")}
    assert layers == {str(index) for index in range(2 - groups, 2)}
    assert set(halves) == set(whole)
    for name, gradient in halves.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("norms", ["groups", "all"])
def test_statistics_follow_the_data_only_where_they_are_asked_to(norms: Any) -> None:
    for update in (False, True):
        encoder, trained = causal_encoder(update_batchnorm=update), Trained(image_groups=1, norms=norms)
        freeze(encoder, trained)
        encoder.train()
        before = {name: value.clone() for name, value in encoder.named_buffers()}
        step(encoder, trained)
        moved = {name for name, value in encoder.named_buffers() if not torch.equal(value, before[name])}
        if not update:
            assert not moved
        elif norms == "all":
            assert moved == {name for name in before if "running" in name or "tracked" in name}
        else:
            assert moved
            assert not any(name.startswith(("image.model.bn1.", "image.model.blocks.0.")) for name in moved)
