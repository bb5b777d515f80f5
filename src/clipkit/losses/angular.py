"""Angular margin: the right class, or the right caption, has to win by an angle (AAMP; ArcFace, arXiv 1801.07698).

Run: python -m clipkit.train approach=aamp_mlp
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit.errors import UserError
from clipkit.losses.contrastive import scaled_cosines
from clipkit.losses.gather import Shares
from clipkit.losses.targets import OWN_PAIR, GroupTargets, PairTargets, positive_targets
from clipkit.losses.tiles import at_least_float32

__all__ = ["angular_contrastive_loss", "angular_margin_logits", "check_margin"]


def angular_margin_logits(
    cosines: Tensor, labels: Tensor, *, scale: float | Tensor, margin: float | Tensor, easy_margin: bool = False
) -> Tensor:
    """Scaled cosines, with each row's angle to its own class enlarged by the margin (eq. 3).

    The right class's cos θ becomes cos(θ + m) as far as θ + m ≤ π, and cos θ − m·sin m beyond, where the cosine would
    rise again. Cross-entropy of the result is the loss; a trained model answers without margin, on the same scale.

    Args:
        cosines: [B, C] in −1 … 1.
        labels: [B] classes; a row whose label is no class gets no margin.
        scale: the factor on all of them.
        margin: m in radians, 0 … π/2 (the part beyond π keeps falling up to there). A tensor without dimensions is
            taken as it is: under `torch.func.vmap` nobody can look at it.
        easy_margin: only where cos θ > 0, and nothing beyond (a right class farther off than 90° has no margin).

    Returns:
        [B, C], float32 at least, also under autocast.

    Raises:
        UserError: a margin outside 0 … π/2.
    """
    classes = torch.arange(cosines.shape[1], device=cosines.device)
    return scale * _with_margin(cosines, labels[:, None] == classes, margin=margin, easy_margin=easy_margin)


def angular_contrastive_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor,
    margin: float,
    easy_margin: bool = False,
    targets: PairTargets | GroupTargets = OWN_PAIR,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`contrastive_loss` with the margin on the angle of every right pair, in both directions.

    All logits are written out at once. Over several processes it returns what `contrastive_loss` returns: the loss of
    the joined batch, with gradients that are right once they are averaged.

    Args:
        image: [B, D], rows of unit length.
        text: [M, D], rows of unit length.
        logit_scale: the factor on the cosines, e^t (not t).
        margin: in radians, 0 … π/2; 0 gives `contrastive_loss`.
        easy_margin: see `angular_margin_logits`.
        targets: what each row should match; by default row i belongs to text i (then B = M).
        group: the processes that have a share of the batch each; None is this one alone.

    Returns:
        A scalar in nats, computed in float32 at least; 0 if there is no image or no text.

    Raises:
        UserError: a margin outside 0 … π/2.
    """
    image, text, scale = at_least_float32(image, text, logit_scale)
    images, texts = Shares.of(image, group), Shares.of(text, group)
    if images.total == 0 or texts.total == 0:
        return (image.sum() + text.sum()) * scale * 0.0
    row, column, _ = targets.numbers(images, texts, device=image.device)
    cosines = scaled_cosines(images.gather(image), texts.gather(text), logit_scale=torch.ones_like(scale))  # [B, M]
    right = row[:, None] == column
    logits = scale * _with_margin(cosines, right, margin=margin, easy_margin=easy_margin)
    to_text, to_image = (positive_targets(*pair, dtype=logits.dtype) for pair in ((row, column), (column, row)))
    return (cross_entropy(logits, to_text) + cross_entropy(logits.T, to_image)) / 2


def check_margin(margin: float) -> None:
    """`UserError` unless the margin is an angle in 0 … π/2 radians."""
    if not 0 <= margin <= math.pi / 2:  # NaN is refused, too
        hint = f"; {margin:g}° are {math.radians(margin):.3f}" if math.pi / 2 < margin <= 90 else ""
        raise UserError(f"approach.margin={margin:g}: an angle in radians is expected, 0 … π/2 (1.571){hint}")


def _with_margin(cosines: Tensor, right: Tensor, *, margin: float | Tensor, easy_margin: bool) -> Tensor:
    """[B, M] cosines and where the margin belongs -> [B, M], not scaled."""
    cos: float | Tensor
    sin: float | Tensor
    if isinstance(margin, Tensor):
        cos, sin = margin.cos(), margin.sin()
    else:
        check_margin(margin)
        cos, sin = math.cos(margin), math.sin(margin)
    (cosines,) = at_least_float32(cosines)
    # the root's slope at θ = 0 and θ = π is infinite: the clamp leaves it finite, and the value right to √eps
    eps = 1e-12 if cosines.dtype == torch.float64 else 1e-6
    sines = (1 - cosines.square()).clamp(eps, 1).sqrt()
    moved = cosines * cos - sines * sin  # cos(θ + m)
    if easy_margin:
        moved = torch.where(cosines > 0, moved, cosines)
    else:
        moved = torch.where(cosines >= -cos, moved, cosines - margin * sin)
    return torch.where(right, moved, cosines)
