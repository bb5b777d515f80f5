"""Linear heads fitted by logistic regression to what a frozen tower says of labelled pictures, for any strength.

Used by: python -m clipkit.train approach=linear_probe and python -m clipkit.evaluate evaluators=[linear_probe]
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipkit.models.heads.base import Eats
from clipkit.models.heads.linear import LinearHead
from clipkit.solvers.logistic import LogisticPath

__all__ = ["LinearHeads"]


class LinearHeads:
    """Heads for the same pictures; each fit begins where those before it ended (`LogisticPath`).

    Args:
        features: [N, F].
        labels: [N], 0 … C − 1.
        class_names: C names.
        eats: what the features are, "embeds", "features" or "both".
        standardize: divide each dimension by its spread over these pictures first, and take the mean off.
        balanced: classes with fewer pictures count more for each.
        max_iter: steps of L-BFGS.
        zero_shot: [C, F] weights of a classifier to begin with: the penalty is then the distance from its logits.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        class_names: Sequence[str],
        eats: Eats = "features",
        standardize: bool = True,
        balanced: bool = False,
        max_iter: int = 1000,
        zero_shot: Tensor | None = None,
    ) -> None:
        self.class_names, self.eats, self.zero_shot = class_names, eats, zero_shot
        self.device = features.device
        self.mean, self.std = torch.zeros_like(features[0]), torch.ones_like(features[0])
        if standardize:
            std, self.mean = torch.std_mean(features, dim=0, correction=0)
            self.std = torch.where(std > 1e-6, std, 1.0)
        self.path = LogisticPath(
            (features - self.mean) / self.std,
            labels,
            num_classes=len(class_names),
            balanced=balanced,
            max_iter=max_iter,
            offset=None if zero_shot is None else features @ zero_shot.T,
        )

    def fit(self, C: float) -> LinearHead:
        """The head for an inverse strength of regularisation C, on the features' device."""
        weights, bias = self.path.fit(C)
        head = LinearHead(self.class_names, in_features=len(self.mean), eats=self.eats).to(self.device)
        head.fill(weights, bias, mean=self.mean, std=self.std)
        if self.zero_shot is not None:
            head.weight.data += self.zero_shot
        return head
