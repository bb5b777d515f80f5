"""Optimisers and schedules: who decays, who learns how fast, and when."""

import math
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

from clipkit.approaches.optimization import Constant, Cosine, Optimizer, Plateau, Scheduler, embedding_weights
from clipkit.errors import UserError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.BatchNorm2d(4)])
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def build(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    optimizer = Optimizer(**{"factory": torch.optim.AdamW, "lr": 1e-3, "weight_decay": 0.1, **options})
    return optimizer.build({"heads": module.parameters()}, embedding_weights(module))


def settings(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[float, float]:
    """Learning rate and weight decay of one parameter."""
    (group,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return group["lr"], group["weight_decay"]


def test_only_matrices_and_convolutions_decay() -> None:
    module = Small()
    optimizer = build(module)
    decays = {name: settings(optimizer, p)[1] for name, p in module.named_parameters()}
    assert {name for name, decay in decays.items() if decay > 0} == {"linear.weight", "convolution.weight"}
    assert set(decays.values()) == {0.0, 0.1}


def test_no_decay_where_timm_says_that_a_vit_takes_none() -> None:
    model = timm.create_model("test_vit", num_classes=0)
    optimizer = build(model)
    exempt = model.no_weight_decay() & dict(model.named_parameters()).keys()
    assert exempt
    assert {name: settings(optimizer, model.get_parameter(name))[1] for name in exempt} == dict.fromkeys(exempt, 0.0)


def test_every_trained_parameter_is_updated_by_exactly_one_group_and_frozen_ones_by_none() -> None:
    module = Small()
    module.linear.requires_grad_(False)
    held = [id(p) for group in build(module).param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in module.parameters() if p.requires_grad}


def test_groups_have_their_own_learning_rate_and_weight_decay() -> None:
    parts: dict[str, nn.Linear] = {name: nn.Linear(3, 3) for name in ("heads", "image", "text")}
    optimizer = Optimizer(
        torch.optim.AdamW, lr=1e-3, weight_decay=0.1, group_lr={"image": 1e-5}, group_weight_decay={"text": 0.7}
    )
    scale = nn.Parameter(torch.tensor(1.0))
    parameters: dict[str, Iterable[nn.Parameter]] = {name: part.parameters() for name, part in parts.items()}
    built = optimizer.build({**parameters, "logit_scale": [scale]}, set())
    assert settings(built, parts["heads"].weight) == (1e-3, 0.1)
    assert settings(built, parts["heads"].bias) == (1e-3, 0.0)
    assert settings(built, parts["image"].weight) == (1e-5, 0.1)
    assert settings(built, parts["image"].bias) == (1e-5, 0.0)
    assert settings(built, parts["text"].weight) == (1e-3, 0.7)
    assert settings(built, scale) == (1e-3, 0.0)


@pytest.mark.parametrize("options", [{"group_lr": {"imgae": 1.0}}, {"group_weight_decay": {"imgae": 1.0}}])
def test_an_unknown_group_is_a_user_error_that_names_the_groups(options: Any) -> None:
    with pytest.raises(UserError, match=r"imgae.*heads, image, text, logit_scale"):
        Optimizer(torch.optim.SGD, lr=1.0, **options)


def rates(scheduler: Scheduler, steps: int) -> list[float]:
    """The learning rate of each step, and the one after the last."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    (entry,) = scheduler.build(optimizer, steps)
    assert entry["interval"] == "step"
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        entry["scheduler"].step()
    return found


def test_a_fused_optimiser_takes_the_steps_of_the_plain_one_for_every_layout_of_weights() -> None:
    """Convolution towers are channels_last, and a kernel that runs through memory must not mix up weights."""
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten())
        net = nn.Sequential(net.to(memory_format=torch.channels_last), nn.LayerNorm(64), nn.Linear(64, 5))
        optimizer = build(net, factory=partial(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-6, fused=fused))
        for step in range(5):
            pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            net(pixels.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([parameter.detach() for parameter in net.parameters()])
    for plain, fused_one in zip(*results, strict=True):
        torch.testing.assert_close(fused_one, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("may_fuse", "expected"), [(True, True), (False, False)])
def test_a_fused_optimiser_is_built_plain_where_it_may_not_be_fused(may_fuse: bool, expected: bool) -> None:
    net = Small()
    optimizer = Optimizer(partial(torch.optim.AdamW, fused=True), lr=1e-3)
    assert optimizer.build({"heads": net.parameters()}, set(), may_fuse=may_fuse).defaults["fused"] is expected
    plain = Optimizer(partial(torch.optim.Adagrad, lr_decay=0.1), lr=1e-3)  # knows no such option in old torch
    assert not plain.build({"heads": net.parameters()}, set(), may_fuse=may_fuse).defaults.get("fused")


@pytest.mark.parametrize("scheduler", [Cosine(warmup=0.1), Constant(warmup=0.1)])
@pytest.mark.parametrize("steps", [50, 1000])
def test_the_warm_up_is_a_share_of_the_steps(scheduler: Scheduler, steps: int) -> None:
    found = rates(scheduler, steps)
    ramp = steps // 10
    assert 0 < found[0] < found[ramp - 1] < 2
    gaps = [b - a for a, b in pairwise(found[: ramp + 1])]
    assert gaps == pytest.approx([gaps[0]] * ramp)
    assert found[ramp] == pytest.approx(2)
    assert max(found) == pytest.approx(2)


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_cosine_falls_from_the_full_rate_to_its_final_share(warmup: float, final: float) -> None:
    found = rates(Cosine(warmup=warmup, final=final), 100)
    start = round(100 * warmup)
    falling = found[start:]
    assert falling[0] == pytest.approx(2)
    assert falling[-1] == pytest.approx(2 * final)
    assert all(a > b for a, b in pairwise(falling))
    assert falling[len(falling) // 2] == pytest.approx(2 * (1 + final) / 2)
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert falling[(len(falling) - 1) // 4] == pytest.approx(2 * (final + (1 - final) * quarter))


def test_a_constant_rate_is_constant() -> None:
    assert set(rates(Constant(), 30)) == {2.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_very_few_steps_learn_something(steps: int) -> None:
    found = rates(Cosine(warmup=0.1), steps)
    assert all(math.isfinite(rate) for rate in found)
    assert max(found[:steps]) > 0


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 5])
def test_a_warm_up_that_is_no_share_is_a_user_error(warmup: float) -> None:
    with pytest.raises(UserError, match="share"):
        Cosine(warmup=warmup)


def test_a_plateau_lowers_the_rate_when_the_metric_stops_improving() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    (entry,) = Plateau(patience=1, shrink=0.5).build(optimizer, 100)
    assert (entry["interval"], entry["monitor"]) == ("epoch", "val/loss")
    found = []
    for loss in (3.0, 2.0, 2.0, 2.0, 1.0):
        entry["scheduler"].step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(("width", "expected"), [(100, False), (4000, True)])
def test_large_models_are_fused_by_themselves(width: int, expected: bool) -> None:
    net = torch.nn.Linear(width, width)
    optimizer = Optimizer(partial(torch.optim.AdamW, fused="auto"), lr=1e-3)
    assert optimizer.build({"heads": net.parameters()}, set()).defaults["fused"] is expected
    assert optimizer.build({"heads": net.parameters()}, set(), may_fuse=False).defaults["fused"] is False


def test_a_plateau_with_warm_up_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(UserError, match="warmup"):
        Plateau(warmup=0.1).build(optimizer, 100)
