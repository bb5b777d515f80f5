"""Optimisers with a learning rate per group of weights, and schedules with a warm-up given as a share of the stage."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from clipkit.errors import UserError

__all__ = ["Constant", "Cosine", "Optimizer", "Plateau", "Scheduler", "embedding_weights"]

FUSED_FROM = 10_000_000  # trained weights, on a processor
GROUPS = ("heads", "image", "text", "logit_scale")


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated.

    Args:
        factory: a torch optimiser class (with further options bound).
        lr: learning rate of every group that `group_lr` does not name.
        weight_decay: applied to matrices only: not to biases, norms, the temperature or embeddings.
        group_lr, group_weight_decay: other values for single groups: "heads", "image", "text", "logit_scale".
    """

    factory: Callable[..., TorchOptimizer]
    lr: float
    weight_decay: float = 0.0
    group_lr: dict[str, float] = field(default_factory=dict)
    group_weight_decay: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted({*self.group_lr, *self.group_weight_decay} - set(GROUPS))
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise UserError(f"optimizer.{name}={value}: a number from 0 is expected")
        if unknown:
            raise UserError(f"optimizer: there is no group {', '.join(unknown)}: the groups are {', '.join(GROUPS)}")

    def build(
        self, parameters: dict[str, Iterable[nn.Parameter]], embeddings: set[int], *, may_fuse: bool = True
    ) -> TorchOptimizer:
        """The optimiser over the trained parameters.

        Args:
            parameters: by group; those without `requires_grad` are left out.
            embeddings: ids of embedding tables' weights, which do not decay.
            may_fuse: false where another part must see the gradients before the step: what `factory` says of `fused`
                (true, false, or "auto" for large models and GPUs) is then overruled.
        """
        groups: list[dict[str, Any]] = []
        for name, members in parameters.items():
            trained = [p for p in members if p.requires_grad]
            lr = self.group_lr.get(name, self.lr)
            weight_decay = self.group_weight_decay.get(name, self.weight_decay)
            matrices = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
            others = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
            other_name = f"{name}/no_decay" if matrices else name
            for label, chosen, decay in ((name, matrices, weight_decay), (other_name, others, 0.0)):
                if chosen:
                    groups.append({"params": chosen, "lr": lr, "weight_decay": decay, "name": label})
        weights = [p for group in groups for p in group["params"]]
        asked = getattr(self.factory, "keywords", {}).get("fused")
        if asked == "auto":  # one kernel for all; on a processor it pays for large towers
            asked = any(p.is_cuda for p in weights) or sum(p.numel() for p in weights) >= FUSED_FROM
        fused = {} if asked is None else {"fused": bool(asked) and may_fuse}
        return self.factory(groups, lr=self.lr, **fused)


class Scheduler:
    """Multiplies each group's learning rate over one stage. `warmup` is the share of its steps that ramp up."""

    def __init__(self, *, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise UserError(f"scheduler.warmup={warmup}: a share of the stage's steps is expected, 0 … 1")
        self.warmup = warmup

    def factor(self, progress: float) -> float:
        """The factor after the warm-up, at `progress` 0 … 1 of the rest."""
        return 1.0

    def build(self, optimizer: TorchOptimizer, total_steps: int) -> list[dict[str, Any]]:
        """Lightning's scheduler entries."""
        ramp = round(self.warmup * total_steps)

        def scale(step: int) -> float:
            if step < ramp:
                return (step + 1) / (ramp + 1)
            return self.factor(min(1.0, (step - ramp) / max(1, total_steps - ramp)))

        return [{"scheduler": LambdaLR(optimizer, scale), "interval": "step"}]


class Constant(Scheduler):
    """The same learning rate to the end."""


class Cosine(Scheduler):
    """Half a cosine from the full rate down to `final` of it (arXiv 1608.03983, one cycle)."""

    def __init__(self, *, warmup: float = 0.0, final: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        self.final = final

    def factor(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Plateau(Scheduler):
    """Multiply the rate by `shrink` when `monitor` has not improved for `patience` epochs (looked at every epoch)."""

    def __init__(
        self, *, warmup: float = 0.0, patience: int = 1, shrink: float = 0.8, monitor: str = "val/loss"
    ) -> None:
        super().__init__(warmup=warmup)
        self.patience, self.shrink, self.monitor = patience, shrink, monitor

    def build(self, optimizer: TorchOptimizer, total_steps: int) -> list[dict[str, Any]]:
        if self.warmup > 0:
            raise UserError("scheduler.warmup must be 0 with scheduler=plateau: the two would overwrite each other")
        plateau = ReduceLROnPlateau(optimizer, factor=self.shrink, patience=self.patience)
        return [{"scheduler": plateau, "interval": "epoch", "monitor": self.monitor, "strict": False}]


def embedding_weights(module: nn.Module) -> set[int]:
    """Ids of a module's embeddings, which take no weight decay: tables, and what a model itself lists (timm's ViTs)."""
    found = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for part in module.modules():
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            names = set(listed())
            found |= {id(parameter) for name, parameter in part.named_parameters() if name in names}
    return found
