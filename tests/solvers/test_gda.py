"""Gaussian discriminant analysis against the formula written out, scikit-learn, and limits that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.solvers import gda
from clipkit.solvers.gda import fit_gda, search_alpha, text_prior
from clipkit.solvers.temperature import fit_scale


def problem(rows: int = 60, width: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated rows around class means; the last class has no row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes - 1, (rows,), generator=generator)
    means = 2 * torch.randn(classes, width, dtype=torch.float64, generator=generator)
    mixing = torch.randn(width, width, dtype=torch.float64, generator=generator)
    return means[labels] + torch.randn(rows, width, dtype=torch.float64, generator=generator) @ mixing, labels


def precision(x: Tensor, y: Tensor) -> Tensor:
    """F ((N − 1) Σ + tr(Σ) I)⁻¹, Σ within classes."""
    apart = torch.cat([x[y == k] - x[y == k].mean(0) for k in y.unique()])
    covariance = apart.T @ apart / (len(x) - 1)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return x.shape[1] * torch.linalg.inv((len(x) - 1) * covariance + covariance.trace() * eye)


@pytest.mark.parametrize("at_once", [1, 7, 2**14])
def test_it_is_the_published_formula_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(gda, "AT_ONCE", at_once)
    x, y = problem()
    weights, bias = fit_gda(x, y, num_classes=4)
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    inverse = precision(x, y)
    expected = means @ inverse
    torch.testing.assert_close(weights[:3].double(), expected - expected.mean(0), atol=1e-5, rtol=1e-5)
    offset = -0.5 * torch.einsum("kd,de,ke->k", means, inverse, means)
    torch.testing.assert_close(bias[:3].double(), offset - offset.mean(), atol=1e-5, rtol=1e-5)


def test_a_class_without_pictures_is_never_the_answer() -> None:
    x, y = problem()
    weights, bias = fit_gda(x, y, num_classes=4)
    assert ((x.float() @ weights.T + bias).argmax(1) != 3).all()


def test_with_many_rows_it_answers_as_scikit_learns_linear_discriminant() -> None:
    x, y = problem(rows=20_000, classes=4)
    weights, bias = fit_gda(x, y, num_classes=3)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(x.numpy(), y.numpy())
    ours = (x.float() @ weights.T + bias).argmax(1).numpy()
    assert (ours == theirs.predict(x.numpy())).mean() > 0.999


def test_the_answer_is_the_most_probable_gaussian() -> None:
    """With the class means pulled towards a prior as the posterior mean of a Gaussian is."""
    x, y = problem()
    prior = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights, bias = fit_gda(x, y, num_classes=4, prior=prior, prior_count=3.0)
    counts = torch.bincount(y, minlength=4)
    sums = torch.stack([x[y == k].sum(0) for k in range(4)])
    means = (sums + 3 * prior) / (counts + 3)[:, None]
    covariance = torch.linalg.inv(precision(x, y)).numpy()
    density = np.stack([multivariate_normal(mean, covariance).logpdf(x.numpy()) for mean in means.numpy()], 1)
    logits = x @ weights.double().T + bias.double()
    np.testing.assert_allclose(
        torch.log_softmax(logits, 1).numpy(), density - np.logaddexp.reduce(density, 1)[:, None], atol=1e-3
    )


def test_views_are_samples_of_the_spread_and_not_further_pictures() -> None:
    """Ten equal views of each picture move the means as one picture does."""
    x, y = problem()
    prior = torch.zeros(4, 8, dtype=torch.float64)
    once = fit_gda(x, y, num_classes=4, prior=prior, prior_count=3.0)
    ten = fit_gda(x.repeat(10, 1), y.repeat(10), num_classes=4, prior=prior, prior_count=3.0, views=10)
    inverses = [precision(x, y), precision(x.repeat(10, 1), y.repeat(10))]
    means = [weights.double() @ torch.linalg.inv(p) for (weights, _), p in zip((once, ten), inverses, strict=True)]
    torch.testing.assert_close(means[0], means[1], atol=1e-4, rtol=1e-4)


def test_a_heavy_prior_is_the_answer_of_the_prior() -> None:
    x, y = problem()
    prior = x.mean(0) + 3 * torch.eye(8, dtype=torch.float64)[:4]
    weights, bias = fit_gda(x, y, num_classes=4, prior=prior, prior_count=1e9)
    assert (prior.float() @ weights.T + bias).argmax(1).tolist() == [0, 1, 2, 3]


def test_one_picture_a_class_without_views_is_the_nearest_picture() -> None:
    x, y = torch.eye(3, 5), torch.arange(3)
    weights, bias = fit_gda(x, y, num_classes=3)
    assert (x @ weights.T + bias).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_features_are_refused(bad: float) -> None:
    x, y = problem()
    x[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_gda(x, y, num_classes=4)


def test_pictures_where_their_texts_say_are_found_whatever_the_gap() -> None:
    """Pictures are texts moved by a constant and shrunk: the prior of a class without pictures is where it lies."""
    text = normalize(torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    gap = torch.full((16,), 0.7, dtype=torch.float64)
    pictures = gap + 0.4 * text
    prior = text_prior(pictures, torch.arange(5), text)
    torch.testing.assert_close(prior, pictures, atol=1e-9, rtol=0)
    unseen = text_prior(pictures[:4], torch.arange(4), text)
    assert torch.cdist(unseen[4:], pictures).argmin() == 4


def test_texts_that_say_the_opposite_say_nothing() -> None:
    text = normalize(torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    prior = text_prior(-text, torch.arange(4), text)
    torch.testing.assert_close(prior, (-text).mean(0).expand(4, -1))


def test_equal_texts_say_nothing() -> None:
    text = torch.ones(3, 4, dtype=torch.float64) / 2
    assert torch.isfinite(text_prior(torch.eye(3, 4, dtype=torch.float64), torch.arange(3), text)).all()


def test_alpha_leans_on_whoever_is_right() -> None:
    right, wrong = 5 * torch.eye(3), 5 * torch.eye(3).roll(1, 0)
    assert search_alpha(right, wrong, torch.arange(3)) == 0
    assert search_alpha(wrong, right, torch.arange(3)) > 1


def test_the_scale_has_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=generator)
    logits = 30 * torch.nn.functional.one_hot(labels, 4) + 40 * torch.randn(200, 4, generator=generator)
    scale = fit_scale(logits, labels)
    losses = [cross_entropy(factor * scale * logits.double(), labels).item() for factor in (0.98, 1.0, 1.02)]
    assert losses[1] == min(losses)
    assert fit_scale(logits[:0], labels[:0]) == 1


@pytest.mark.parametrize("noise", [1e-7, 1e-3, 1e-1])
def test_a_class_of_which_nothing_is_known_is_never_the_answer_however_tight_the_others_are(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(4, 10, generator=generator))
    labels = torch.arange(4).repeat(2)
    rows = centres[labels] + noise * torch.randn(8, 10, generator=generator)
    weights, bias = fit_gda(rows, labels, num_classes=6)
    asked = normalize(torch.randn(200, 10, generator=generator))
    assert ((asked @ weights.T + bias).argmax(1) < 4).all()


def test_a_classifier_that_guesses_keeps_answers_that_can_be_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 5, generator=generator), torch.randint(5, (60,), generator=generator)
    wrong = logits - 9 * torch.nn.functional.one_hot(labels, 5)  # any spread makes the loss worse
    scaled = fit_scale(wrong, labels) * wrong
    assert scaled.std(1, correction=0).mean().item() == pytest.approx(0.05, rel=0.02)
    assert torch.equal(scaled.softmax(1).argmax(1), wrong.argmax(1))
    assert fit_scale(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) == 1
