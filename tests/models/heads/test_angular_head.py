"""AngularMLP: a margin in training alone, one scale for both, and prototypes whose length means nothing."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.errors import UserError
from clipkit.models.heads.angular import AngularMLP

NAMES = ("a", "b", "c", "d")


def head(**options: float) -> AngularMLP:
    torch.manual_seed(0)
    return AngularMLP(NAMES, 6, **options).double()  # type: ignore[arg-type]


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return normalize(torch.randn(20, 6, generator=generator, dtype=torch.float64), dim=1), torch.arange(20) % 4


def moved(made: AngularMLP, x: Tensor) -> Tensor:
    """x + W₂ max(0, W₁ x + b₁) + b₂, written out."""
    first, second = made.hidden, made.output
    return x + (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias


def test_the_training_loss_is_arcfaces_on_the_moved_embeddings() -> None:
    made, (x, labels) = head(scale=30.0, margin=0.5), pictures()
    reference = ArcFaceLoss(4, 6, margin=math.degrees(0.5), scale=30.0).double()
    reference.W.data = made.prototypes.detach().T.contiguous()
    loss = cross_entropy(made.training_logits(x, labels), labels)
    assert loss.item() == pytest.approx(reference(moved(made, x), labels).item(), abs=1e-6)


def test_answers_have_no_margin_and_the_scale_of_training() -> None:
    made, (x, labels) = head(scale=30.0, margin=0.5), pictures()
    cosines = normalize(moved(made, x), dim=1) @ normalize(made.prototypes, dim=1).T
    torch.testing.assert_close(made(x), 30 * cosines)
    wrong = labels[:, None] != torch.arange(4)
    torch.testing.assert_close(made.training_logits(x, labels)[wrong], made(x)[wrong])
    assert bool((made.training_logits(x, labels)[~wrong] < made(x)[~wrong]).all())


def test_the_length_of_a_prototype_changes_nothing() -> None:
    made, (x, labels) = head(), pictures()
    before = made.training_logits(x, labels).detach()
    with torch.no_grad():
        made.prototypes.mul_(torch.tensor([[0.1], [3.0], [7.0], [100.0]]))
    torch.testing.assert_close(made.training_logits(x, labels), before)


def test_settings_reach_the_rebuilt_head() -> None:
    made = AngularMLP(NAMES, 6, hidden=9, scale=30.0, margin=0.5, easy_margin=True)
    arguments = {key: value for key, value in made.spec().items() if key != "_target_"}
    rebuilt = AngularMLP(**arguments)
    rebuilt.load_state_dict(made.state_dict())
    x, labels = pictures()
    assert torch.equal(rebuilt.training_logits(x.float(), labels), made.training_logits(x.float(), labels))
    assert made.hidden.out_features == 9


def test_a_margin_is_checked_before_training() -> None:
    with pytest.raises(UserError, match=r"approach\.margin=1\.6"):
        AngularMLP(NAMES, 6, margin=1.6)
