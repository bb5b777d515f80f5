"""Logistic regression: scikit-learn's answers, the stated objective's minimum, and the choice of C."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.solvers.logistic import choose_C, fit_logistic


def problem(rows: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, the first of them with half of the rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    labels[: rows // 3] = 0
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] * 0.5 + torch.randn(rows, width, generator=generator), labels


def by_sklearn(x: Tensor, y: Tensor, C: float, balanced: bool) -> np.ndarray:
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=C, class_weight=weight, max_iter=10_000, tol=1e-8)
    return model.fit(x.double().numpy(), y.numpy()).predict_proba(x.double().numpy())


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("C", [0.05, 1.0, 20.0])
@pytest.mark.parametrize(("rows", "width", "classes"), [(90, 6, 4), (24, 60, 4), (60, 5, 2), (20, 40, 2)])
@pytest.mark.parametrize("offset", [False, True])
def test_probabilities_are_those_of_scikit_learn(
    rows: int, width: int, classes: int, C: float, balanced: bool, offset: bool
) -> None:
    """More rows than columns and fewer, two classes and more; an offset of zeros changes nothing."""
    x, y = problem(rows, width, classes)
    begin = torch.zeros(rows, classes) if offset else None
    weights, bias = fit_logistic(x, y, num_classes=classes, C=C, balanced=balanced, offset=begin)
    found = (x @ weights.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(found, by_sklearn(x, y, C, balanced), atol=1e-4)


@pytest.mark.parametrize(("rows", "width"), [(60, 5), (20, 40)])
def test_with_an_offset_the_stated_objective_has_its_minimum_there(rows: int, width: int) -> None:
    """It is convex: where its gradient vanishes is the minimum. Autograd, float64, weights of rows as written."""
    x, y = problem(rows, width, 3)
    begin = 3 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    found = fit_logistic(x, y, num_classes=3, C=2.0, balanced=True, offset=begin)
    weights, bias = (part.double().requires_grad_() for part in found)
    importance = (rows / (3 * torch.bincount(y)))[y].double()
    losses = cross_entropy(begin.double() + x.double() @ weights.T + bias, y, reduction="none")
    (2.0 * (importance * losses).sum() + weights.square().sum() / 2).backward()
    assert weights.grad is not None
    assert bias.grad is not None
    assert weights.grad.abs().max() < 1e-3  # of a sum over the rows
    assert bias.grad.abs().max() < 1e-3


def test_a_strong_penalty_leaves_the_start_as_it_is() -> None:
    x, y = problem(60, 5, 3)
    begin = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    weights, _ = fit_logistic(x, y, num_classes=3, C=1e-9, offset=begin)
    assert weights.abs().max() < 1e-6


def test_a_class_without_a_row_is_never_the_answer_and_changes_no_other() -> None:
    x, y = problem(60, 5, 3)
    weights, bias = fit_logistic(x, y * 2, num_classes=6)  # classes 0, 2, 4 of 0 … 5
    found = (x @ weights.T + bias).softmax(1)
    assert torch.isfinite(found).all()
    assert found[:, [1, 3, 5]].max() == 0
    np.testing.assert_allclose(found[:, [0, 2, 4]].numpy(), by_sklearn(x, y, 1.0, False), atol=1e-4)


def test_with_an_offset_a_class_without_a_row_keeps_the_offset_alone() -> None:
    x, y = problem(60, 5, 2)
    begin = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    weights, bias = fit_logistic(x, y, num_classes=3, offset=begin)
    assert torch.equal(weights[2], torch.zeros(5))
    assert bias[2] == 0
    assert weights[:2].abs().max() > 0.01


def test_one_row_a_class_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_logistic(torch.randn(4, 9), torch.arange(4), num_classes=4)


def test_rows_of_one_class_only_have_an_answer() -> None:
    x = torch.randn(5, 3)
    weights, bias = fit_logistic(x, torch.full((5,), 2), num_classes=4)
    assert ((x @ weights.T + bias).argmax(1) == 2).all()
    weights, bias = fit_logistic(x, torch.full((5,), 2), num_classes=4, offset=torch.randn(5, 4))
    assert torch.equal(weights, torch.zeros(4, 3))
    assert torch.equal(bias, torch.zeros(4))


LABELS = torch.zeros(100, dtype=torch.long)


def answers(right: int, confidence: float) -> Tensor:
    """[100, 2] logits with so many right answers."""
    logits = torch.tensor([[confidence, 0.0]]).repeat(100, 1)
    logits[right:] = torch.tensor([0.0, 0.1])
    return logits


@pytest.mark.parametrize("best", [0.002, 0.05, 1.0, 7.0, 800.0])
def test_the_C_with_the_most_right_answers_is_found(best: float) -> None:
    """Where accuracy falls off on both sides, to the step that four halvings of a factor ten leave."""

    def logits(C: float) -> Tensor:
        return answers(100 - round(20 * abs(math.log10(C / best)) ** 0.5), 1.0)

    assert abs(math.log10(choose_C(logits, LABELS) / best)) <= 1 / 16


def test_of_equal_accuracies_the_least_loss_decides() -> None:
    def logits(C: float) -> Tensor:
        return answers(90, 2.0 - abs(math.log10(C / 30)) / 10)

    assert abs(math.log10(choose_C(logits, LABELS) / 30)) <= 1 / 16


def test_accuracy_comes_before_loss() -> None:
    def logits(C: float) -> Tensor:
        return answers(91 if C > 500 else 90, 0.1 if C > 500 else 5.0)

    assert choose_C(logits, LABELS) > 500


@pytest.mark.parametrize("edge", [1e-3, 1e3])
def test_C_stays_on_the_grid_and_each_is_fitted_once(edge: float) -> None:
    asked = []

    def logits(C: float) -> Tensor:
        asked.append(C)
        return answers(100 - round(16 * abs(math.log10(C / edge))), 1.0)

    assert choose_C(logits, LABELS) == pytest.approx(edge)
    assert min(asked) == pytest.approx(1e-3)
    assert max(asked) == pytest.approx(1e3)
    assert len(asked) == len(set(asked)) <= 7 + 2 * 4


def test_without_validation_pictures_nothing_is_fitted() -> None:
    def logits(C: float) -> Tensor:
        raise AssertionError

    assert choose_C(logits, LABELS[:0], default=0.8) == 0.8
