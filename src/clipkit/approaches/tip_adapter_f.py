"""Tip-Adapter-F (arXiv 2207.09519): the remembered pictures are where training starts.

Run: python -m clipkit.train approach=tip_adapter_f data=cars data.root=… data.shots=16
"""

from collections.abc import Mapping
from typing import Any, Literal

from clipkit.approaches.base import Stage
from clipkit.approaches.classifying import Classifying
from clipkit.approaches.stored import CLIP_SCALE
from clipkit.approaches.tip_adapter import Auto, choose_blend, published, remember
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.heads.tip_adapter import TipAdapter

__all__ = ["TipAdapterF"]


class TipAdapterF(Classifying):
    """Trains the keys of Tip-Adapter's memory; α and β are chosen on the validation pictures afterwards.

    The paper chose the epoch on test; here it is the best by validation.

    Args:
        encoder, stages, monitor, init, label_smoothing, ema, search: see `Classifying`; it always starts from text.
        key_views: views of each training picture whose mean is its key; 1 is the picture alone.
        alpha, beta: see `clipkit.approaches.tip_adapter.TipAdapter`; where they are "auto", training takes the paper's.
    """

    head: TipAdapter

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        stages: Mapping[str, Stage],
        monitor: str = "val/loss",
        init: Literal["text"] = "text",
        label_smoothing: float = 0.0,
        ema: float | None = None,
        search: Mapping[str, Any] | None = None,
        key_views: int = 10,
        alpha: Auto = "auto",
        beta: Auto = "auto",
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
        self.key_views, self.alpha, self.beta = key_views, alpha, beta

    def new_head(self, features: FrozenFeatures, seed: int) -> TipAdapter:
        self.head = remember(features, views=self.key_views)
        unit = self.head.logit_scale.item() / CLIP_SCALE
        alpha, beta = published(self.alpha, self.beta)
        self.head.blend(unit * alpha, beta)
        return self.head

    def finish(self, features: FrozenFeatures) -> None:
        alpha, beta = choose_blend(self.head, features, alpha=self.alpha, beta=self.beta)
        self.chosen |= {"alpha": alpha, "beta": beta}
