"""The search for C tells what it tried. What it finds: `test_logistic.py`."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.solvers.strength import search_C


def test_all_that_was_tried_is_told_with_accuracy_and_loss() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (50,), generator=draws)
    right, noise = torch.eye(3)[labels], torch.randn(50, 3, generator=draws)
    asked: dict[float, Tensor] = {}

    def logits(C: float) -> Tensor:
        asked[C] = C / (1 + C) * right + noise / (1 + 0.2 / C)
        return asked[C]

    best, trials = search_C(logits, labels)
    assert [trial.C for trial in trials] == sorted(asked)
    for trial in trials:
        assert trial.accuracy == pytest.approx((asked[trial.C].argmax(1) == labels).float().mean().item())
        assert trial.loss == pytest.approx(cross_entropy(asked[trial.C], labels).item(), rel=1e-5)
    assert pytest.approx(best) == max(trials, key=lambda trial: (trial.accuracy, -trial.loss)).C
