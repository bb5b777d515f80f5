"""Logistic regression: scikit-learn's answers, the stated objective's minimum, and the choice of C."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.solvers import logistic
from clipkit.solvers.logistic import LogisticPath, choose_C, fit_logistic


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


STRENGTHS = [1e-3, 0.1, 10.0, 1e3]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_answers_are_those_of_scikit_learn_for_weak_and_strong_penalties(
    monkeypatch: pytest.MonkeyPatch, classes: int, balanced: bool
) -> None:
    """On 99.9 % of new pictures or more, in float32 as in float64."""
    generator = torch.Generator().manual_seed(0)
    centres, scale = torch.randn(classes, 12, generator=generator), torch.logspace(-0.5, 0.5, 12)
    labels = (torch.rand(4000, generator=generator) ** 2 * classes).long()  # the first class is the largest
    rows = (0.5 * centres[labels] + torch.randn(4000, 12, generator=generator)) * scale + 1
    x, y, new = rows[:600], labels[:600], rows[600:]
    paths = []
    for small, dtype in ((0, torch.float32), (2**60, torch.float64)):
        monkeypatch.setattr(logistic, "SMALL", small)
        paths.append(LogisticPath(x, y, num_classes=classes, balanced=balanced))
        assert paths[-1].dtype == dtype
    for C in STRENGTHS:
        peer = LogisticRegression(C=C, class_weight="balanced" if balanced else None, max_iter=10_000, tol=1e-7)
        expected = peer.fit(x.double().numpy(), y.numpy()).predict(new.double().numpy())
        assert 0.4 < (expected == labels[600:].numpy()).mean() < 0.95  # a problem worth the name
        for path in paths:
            weights, bias = path.fit(C)
            assert ((new @ weights.T + bias).argmax(1).numpy() == expected).mean() >= 0.999, (C, path.dtype)


@pytest.mark.parametrize("with_offset", [False, True])
def test_where_a_fit_begins_does_not_show_in_where_it_ends(with_offset: bool) -> None:
    """Whatever was fitted before, and in whichever order."""
    x, y = problem(300, 20, 4)
    offset = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) if with_offset else None
    for order in (STRENGTHS, STRENGTHS[::-1], [10.0, 1e-3, 1e3, 0.1, 1.0]):
        path = LogisticPath(x, y, num_classes=4, offset=offset)
        for C in order:
            (weights, bias), cold = path.fit(C), fit_logistic(x, y, num_classes=4, C=C, offset=offset)
            found, expected = (x @ weights.T + bias).softmax(1), (x @ cold[0].T + cold[1]).softmax(1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_neighbours_save_steps() -> None:
    x, y = problem(300, 20, 4)
    counted = []
    for strengths in ([7.0], [1.0, 5.0, 7.0]):
        path = LogisticPath(x, y, num_classes=4)
        for C in strengths:
            path.fit(C)
        counted.append(path.steps[math.log(7.0)])
    assert counted[1] < counted[0]


def test_a_fit_asked_for_again_is_not_done_again() -> None:
    x, y = problem(60, 5, 3)
    path = LogisticPath(x, y, num_classes=3, max_iter=1000)
    first = path.fit(2.0)
    path.max_iter = 0  # would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = path.fit(2.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_too_few_steps_are_warned_of() -> None:
    x, y = problem(60, 5, 3)
    with pytest.warns(UserWarning, match=r"C=100 was not at its minimum after max_iter=2 steps"):
        fit_logistic(x, y, num_classes=3, C=100.0, max_iter=2)


@pytest.mark.parametrize("spoilt", ["features", "offset"])
def test_what_is_not_finite_is_refused(spoilt: str) -> None:
    x, y = problem(60, 5, 3)
    offset = torch.zeros(60, 3)
    (x if spoilt == "features" else offset)[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_logistic(x, y, num_classes=3, offset=offset)


def test_dimensions_that_say_nothing_get_no_weight() -> None:
    """Constant ones, and a copy of another, which shares its weight."""
    x, y = problem(90, 6, 4)
    whole = torch.cat([x, torch.full((90, 1), 5.0), x[:, :1]], 1)
    weights, bias = fit_logistic(whole, y, num_classes=4)
    assert weights[:, 6].abs().max() < 1e-6
    torch.testing.assert_close(weights[:, 7], weights[:, 0], atol=1e-4, rtol=0)
    np.testing.assert_allclose((whole @ weights.T + bias).softmax(1), by_sklearn(whole, y, 1.0, False), atol=1e-4)


def test_products_that_are_less_than_float32_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TF32 or bfloat16 may stand in for float32."""
    monkeypatch.setattr(logistic, "SMALL", 0)
    x, y = problem(90, 6, 4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert LogisticPath(x, y, num_classes=4).dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_processor_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "SMALL", 0)
    x, y = problem(900, 30, 4)
    ours, theirs = (LogisticPath(x.to(d), y.to(d), num_classes=4) for d in ("cpu", "cuda"))
    for C in STRENGTHS:
        weights, bias = theirs.fit(C)
        assert weights.device.type == "cuda"
        expected = ours.fit(C)
        found = (x @ weights.cpu().T + bias.cpu()).softmax(1)
        torch.testing.assert_close(found, (x @ expected[0].T + expected[1]).softmax(1), atol=1e-3, rtol=0)


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
