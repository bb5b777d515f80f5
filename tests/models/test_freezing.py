"""Freezing: what is frozen does not move by a bit, what is trained does."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower

CHOICES = [
    Trained(),
    Trained(image_groups=1, text_groups=1),
    Trained(image_groups=2, logit_scale=False),
    Trained(text_groups=2, projections=False),
    Trained(image_groups="all", text_groups="all"),
    Trained(image_groups="all", depthwise=False),
]


def tiny_encoder(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    text = {"model_type": "bert", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128, "pad_token_id": 0}
    return DualEncoder(
        TimmImageTower("test_efficientnet", image_size=32),
        TransformersTextTower(config=text),
        **{"projection": partial(LinearProjection, embed_dim=32), **options},
    )


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
    ids=str,
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
