"""LP++ against a plain transcription with autograd, and against a general minimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.solvers.lp_plus_plus import fit_lp_plus_plus


def problem(rows: int = 30, width: int = 8, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and class texts as directions, labels that directions tell only in part; the last class has no row."""
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(classes, width, dtype=torch.float64, generator=generator))
    labels = torch.randint(classes - 1, (rows,), generator=generator)
    features = text[labels] + 0.7 * torch.randn(rows, width, dtype=torch.float64, generator=generator)
    return normalize(features + 0.5), labels, text


def transcribed(features: Tensor, labels: Tensor, text: Tensor, iterations: int) -> tuple[Tensor, Tensor, list[float]]:
    """w_k = Σ f of class k; α = 250 · mean over classes of mean f·t; steps 4N/λmax(FᵀF) and N/(4 max Σ (f·t)²)."""
    rows, classes = len(features), len(text)
    w = torch.stack([features[labels == k].sum(0) for k in range(classes)]).requires_grad_()
    means = [(features[labels == k] @ text[k]).mean() for k in range(classes) if (labels == k).any()]
    alpha = (250 * torch.stack(means).mean() * torch.ones(classes, dtype=torch.float64)).requires_grad_()
    w_step = 4 * rows / np.linalg.eigvalsh((features.T @ features).numpy()).max()
    alpha_step = rows / (4 * max(float(((features @ text[k]) ** 2).sum()) for k in range(classes)))
    losses = []

    def loss() -> Tensor:
        logits = torch.stack([features @ (w[k] + alpha[k] * text[k]) for k in range(classes)], 1)
        return cross_entropy(logits, labels)

    for iteration in range(iterations):
        losses.append(loss().item())
        w.grad = None
        loss().backward()
        w.data -= w_step * w.grad
        if iteration % 10 == 9:
            alpha.grad = None
            loss().backward()
            alpha.data -= alpha_step * alpha.grad
    return w.detach(), alpha.detach(), [*losses, loss().item()]


@pytest.mark.parametrize("seed", range(3))
def test_weights_and_losses_are_those_of_the_published_steps(seed: int) -> None:
    features, labels, text = problem(seed=seed)
    w, alpha, expected = transcribed(features, labels, text, 45)
    blend, losses = fit_lp_plus_plus(features, labels, text, iterations=45)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    torch.testing.assert_close(blend.visual, w.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blend.alpha, alpha.float(), atol=1e-5, rtol=1e-5)
    whole = (w + alpha[:, None] * text).float()
    torch.testing.assert_close(blend.weights, whole, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_no_step_raises_the_loss(seed: int, classes: int) -> None:
    features, labels, text = problem(rows=25, classes=classes, seed=seed)
    _, losses = fit_lp_plus_plus(features, labels, text)
    assert len(losses) == 301
    assert np.diff(losses).max() <= 1e-12
    assert losses[-1] < losses[0]


def test_it_ends_at_the_minimum_that_a_general_minimiser_finds() -> None:
    """Labels that no linear classifier tells, so that there is a minimum; w alone reaches what w and α reach."""
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(150, 4, dtype=torch.float64, generator=generator))
    labels = torch.randint(3, (150,), generator=generator)
    text = normalize(torch.randn(3, 4, dtype=torch.float64, generator=generator))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).view(3, 4).requires_grad_()
        loss = cross_entropy(features @ weights.T, labels)
        loss.backward()
        assert weights.grad is not None
        return loss.item(), weights.grad.flatten().numpy()

    best = minimize(objective, np.zeros(12), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15}).fun
    _, losses = fit_lp_plus_plus(features, labels, text, iterations=3000)
    assert losses[-1] == pytest.approx(best, abs=1e-8)
    assert losses[0] > best + 0.1


def test_the_blend_begins_in_the_unit_of_the_models_own_scale() -> None:
    features, labels, text = problem()
    whole, tenth = (fit_lp_plus_plus(features, labels, text, iterations=0, unit=unit)[0] for unit in (1.0, 0.1))
    torch.testing.assert_close(tenth.alpha, whole.alpha / 10)
    assert torch.equal(tenth.visual, whole.visual)


def test_the_iteration_with_the_least_validation_loss_is_kept() -> None:
    features, labels, text = problem(rows=12, seed=3)
    other, other_labels, _ = problem(rows=40, seed=4)
    kept, losses = fit_lp_plus_plus(features, labels, text, validation=(other, other_labels))
    last, same = fit_lp_plus_plus(features, labels, text)
    assert losses == same  # validation chooses, it does not train
    each = [fit_lp_plus_plus(features, labels, text, iterations=i)[0] for i in range(0, 301, 10)]
    least = min(cross_entropy(blend.logits(other.float()), other_labels).item() for blend in each)
    found = cross_entropy(kept.logits(other.float()), other_labels).item()
    assert found <= least + 1e-5
    assert found < cross_entropy(last.logits(other.float()), other_labels).item() - 1e-3


def test_without_validation_pictures_the_last_iteration_is_kept() -> None:
    features, labels, text = problem()
    empty = (features[:0], labels[:0])
    found, _ = fit_lp_plus_plus(features, labels, text, validation=empty)
    expected, _ = fit_lp_plus_plus(features, labels, text)
    assert torch.equal(found.weights, expected.weights)
    assert found.weights.dtype == torch.float32
