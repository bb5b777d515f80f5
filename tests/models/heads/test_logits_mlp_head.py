"""LogitsMLP: the layers of the recipe, and that it reads nothing but the zero-shot logits."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from clipkit.errors import UserError
from clipkit.models.heads.logits_mlp import LogitsMLP

NAMES = ("a", "b", "c")
TEXT = normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def pictures(count: int = 6) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(1)), dim=1)


def head() -> LogitsMLP:
    torch.manual_seed(2)
    return LogitsMLP(NAMES, 8)


def recipe() -> nn.Sequential:
    """C → 5C BN ReLU Dropout .25 → 5C BN ReLU → 5C BN ReLU Dropout .3 → C BN, for three classes."""
    return nn.Sequential(
        nn.Linear(3, 15), nn.BatchNorm1d(15), nn.ReLU(), nn.Dropout(0.25),
        nn.Linear(15, 15), nn.BatchNorm1d(15), nn.ReLU(),
        nn.Linear(15, 15), nn.BatchNorm1d(15), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(15, 3), nn.BatchNorm1d(3),
    )  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_from_random_it_is_the_recipe_on_the_zero_shot_logits(training: bool) -> None:
    made, reference = head(), recipe()
    made.read_text(TEXT, logit_scale=20.0)
    own = [value for name, value in made.state_dict().items() if name.startswith(("mlp", "output", "norm"))]
    reference.load_state_dict(dict(zip(reference.state_dict(), own, strict=True)))
    made.train(training)
    reference.train(training)
    x = pictures()
    torch.manual_seed(5)  # dropout draws
    expected = reference(20 * x @ TEXT.T)
    torch.manual_seed(5)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_what_the_text_does_not_see_makes_no_difference() -> None:
    made = head().eval()
    made.start_from_text(TEXT, logit_scale=20.0)
    nn.init.ones_(made.norm.weight)
    x = pictures()
    unseen = torch.linalg.svd(TEXT).Vh[3:]  # directions orthogonal to every prototype
    torch.testing.assert_close(made(x + unseen.sum(0)), made(x), rtol=1e-4, atol=1e-4)


def test_one_picture_cannot_be_normalised_over_and_the_message_says_what_to_do() -> None:
    made = head()
    made.start_from_text(TEXT, logit_scale=20.0)
    with pytest.raises(UserError, match=r"data\.batch_size=2"):
        made(pictures(1))
    assert made.eval()(pictures(1)).shape == (1, 3)
