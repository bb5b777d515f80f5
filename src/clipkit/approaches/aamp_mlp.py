"""Angular-margin classification (AAMP): pull each class together, push classes apart by an angle.

Run: python -m clipkit.train approach=aamp_mlp data=cars data.root=…
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clipkit.approaches.base import Stage
from clipkit.approaches.classifying import Classifying
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.angular import AngularMLP

__all__ = ["AampMlp"]


class AampMlp(Classifying):
    """Image embedding → x + MLP(x) → angular margin over classes → cross-entropy (`AngularMLP`, arXiv 1801.07698).

    Args:
        encoder, stages, monitor, init, label_smoothing, ema, search: see `Classifying`.
        hidden: width of the MLP; null takes the embedding's.
        scale: the factor on the cosines, in training and in use.
        margin: in radians, 0 … π/2, in training alone.
        easy_margin: a margin only where the right class is nearer than 90°.
    """

    searchable = AngularMLP.numbers

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/loss",
        init: Literal["text", "random"] = "text",
        label_smoothing: float = 0.0,
        ema: float | None = None,
        search: Mapping[str, Any] | None = None,
        hidden: int | None = None,
        scale: float = 16.0,
        margin: float = 0.25,
        easy_margin: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            stages=stages,
            monitor=monitor,
            init=init,
            label_smoothing=label_smoothing,
            ema=ema,
            search=search,
        )
        self.hidden, self.scale, self.margin, self.easy_margin = hidden, scale, margin, easy_margin
        self.check_numbers()

    def make_head(self, class_names: Sequence[str]) -> AngularMLP:
        return AngularMLP(
            class_names,
            self.encoder.embed_dim,
            hidden=self.hidden,
            scale=self.scale,
            margin=self.margin,
            easy_margin=self.easy_margin,
        )
