"""What a model says of some pictures, as far as novelty can be read from it."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Signals"]


@dataclass(frozen=True)
class Signals:
    """N pictures as a model with C known classes sees them.

    Args:
        embeds: [N, D] float32, rows of unit length.
        features: [N, F] float32 of the image tower, before the projection.
        cosines: [N, C] float32 with the texts of the known classes (mean over templates, unit length).
        logits: [N, C] float32 of the classifier in use: the model's own where it knows these classes, else zero-shot.
    """

    embeds: NDArray[np.float32]
    features: NDArray[np.float32]
    cosines: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.embeds)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> "Signals":
        """Some of the pictures, by row number or mask."""
        return Signals(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
