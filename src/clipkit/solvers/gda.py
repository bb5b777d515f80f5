"""Gaussian discriminant analysis: classes are Gaussians of one covariance, and a picture's is the most probable.

Used by: python -m clipkit.train approach=gda

"A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation" (arXiv 2402.04087) has the estimate of the precision;
that the class texts are a prior of the class means is clipkit's own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipkit.solvers.tip_adapter import blend_score

__all__ = ["ALPHAS", "fit_gda", "fit_gda_with_text", "search_alpha", "text_prior"]

ALPHAS = (0.0, *(10 ** (step / 10 - 5) for step in range(71)))  # 0, 0.00001 … 100
NEVER = 1e4  # by at least so much a class of which nothing is known is below the others
AT_ONCE = 2**14  # rows in float64 at a time


def fit_gda(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    prior: Tensor | None = None,
    prior_count: float = 0.0,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weights Σ̂⁻¹μ_k and biases −½ μ_kᵀΣ̂⁻¹μ_k of classes that are equally frequent, less their means over classes.

    Σ̂⁻¹ = F ((N − 1)Σ + tr(Σ) I)⁻¹ with the covariance Σ within classes, around their own means without the prior: the
    paper's ridge estimate (of Kubokawa and Srivastava), which also exists where rows are fewer than dimensions.

    Args:
        features: [N, F].
        labels: [N], 0 … `num_classes` − 1.
        num_classes: C of the results; not all need to have a row.
        prior: [C, F] what the class means are expected to be; None: nothing is expected.
        prior_count: how many pictures the expectation weighs: μ_k = (n_k x̄_k + `prior_count` · prior_k) /
            (n_k + `prior_count`), the posterior mean of a Gaussian.
        views: rows of the same picture: n_k counts pictures.

    Returns:
        [C, F] and [C], float32. A class without row or prior is never the answer: its bias is far below all
        that another class's logit can be.

    Raises:
        ValueError: `features` hold NaN or infinity, or there is no row.
    """
    if len(features) == 0 or not torch.isfinite(features).all():
        raise ValueError("there are no features, or they hold NaN or infinity: nothing can be fitted to them")
    width = features.shape[1]
    counts = torch.bincount(labels, minlength=num_classes).double()
    sums = torch.zeros(num_classes, width, dtype=torch.float64, device=features.device)
    for rows, classes in _parts(features, labels):
        sums.index_add_(0, classes, rows.double())
    own = sums / counts.clamp_min(1)[:, None]
    scatter = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for rows, classes in _parts(features, labels):
        apart = rows.double() - own[classes]
        scatter += apart.T @ apart  # (N − 1) Σ
    trace = scatter.trace() / max(1, len(features) - 1)
    if trace <= 0:  # one row a class, and no views: nothing is known of the spread, all directions count alike
        scatter, trace = torch.zeros_like(scatter), trace.new_ones(())
    means, known = own, counts > 0
    if prior is not None and prior_count > 0:
        weight = (counts / views)[:, None]
        means = (weight * own + prior_count * prior.double()) / (weight + prior_count)
        known = torch.ones_like(known)
    ridge = scatter + trace * torch.eye(width, dtype=torch.float64, device=features.device)
    weights = width * torch.linalg.solve(ridge, means.T).T
    bias = -0.5 * (weights * means).sum(1)
    weights -= weights[known].mean(0)  # the same for all classes, and large: float32 would round what differs
    bias -= bias[known].mean()
    longest = max(float(rows.double().norm(dim=1).max()) for rows, _ in _parts(features, labels))
    most = 2 * longest * weights.norm(dim=1).max() + bias.abs().max()  # what a row twice as long can have as a logit
    weights[~known], bias[~known] = 0.0, -most - NEVER
    return weights.float(), bias.float()


def fit_gda_with_text(rows: Tensor, labels: Tensor, text: Tensor, *, text_shots: float) -> tuple[Tensor, Tensor]:
    """`fit_gda` where the class texts are the prior of the class means, as if each were so many pictures.

    Args:
        rows: [V, N, F] of V views of N pictures, the first the pictures themselves; the first D columns are embeddings
            of unit length. Of the others the texts say nothing: there a class is expected at the pictures' centre.
        labels: [N].
        text: [C, D] of the classes' sentences, rows of unit length.
        text_shots: how many pictures a text counts for.
    """
    expected = text_prior(rows[0, :, : text.shape[1]], labels, text)
    rest = rows[0, :, text.shape[1] :].double().mean(0)
    prior = torch.cat([expected, rest.expand(len(text), -1)], 1)
    return fit_gda(
        rows.flatten(0, 1),
        labels.repeat(len(rows)),
        num_classes=len(text),
        prior=prior,
        prior_count=text_shots,
        views=len(rows),
    )


def text_prior(embeds: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """[C, D] where the pictures of a class are expected by its text: the pictures' centre, moved along the text's.

    Texts lie elsewhere than pictures (arXiv 2203.02053), so only their distances from each other are used:
    m + γ (t_k − t̄). γ is the least-squares fit to the class means that are there, at least 0.

    Args:
        embeds: [N, D] of the pictures, rows of unit length.
        labels: [N].
        text: [C, D] of the classes' sentences, rows of unit length.
    """
    embeds, text = embeds.double(), text.double()
    centre, moved = embeds.mean(0), text - text.mean(0)
    counts = torch.bincount(labels, minlength=len(text)).double()
    sums = torch.zeros_like(text).index_add_(0, labels, embeds)
    present = counts > 0
    means = sums[present] / counts[present, None] - centre
    length = moved[present].square().sum()
    gamma = (means * moved[present]).sum() / length if length > 0 else length
    return centre + gamma.clamp_min(0) * moved


def search_alpha(text_logits: Tensor, picture_logits: Tensor, labels: Tensor, *, unit: float = 1.0) -> float:
    """α of `text_logits` + `unit` · α · `picture_logits` with the most right answers, of equals with the least loss.

    Args:
        text_logits: [M, C] zero-shot logits of the validation pictures.
        picture_logits: [M, C] of the discriminant.
        labels: [M], at least one.
        unit: what α is counted in: 1 where the zero-shot logits are 100 times the cosines, as in the paper.
    """
    return max(ALPHAS, key=lambda alpha: blend_score(text_logits + unit * alpha * picture_logits, labels))


def _parts(features: Tensor, labels: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(features, AT_ONCE), torch.split(labels, AT_ONCE), strict=True))
