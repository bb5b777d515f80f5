"""Which heads a search asks for, and which of them it takes: by validation pictures, the mean over seeds.

Run: python -m clipkit.train approach=aamp_mlp 'approach.search={lr: [3e-4, 1e-3], margin: [0.1, 0.25], seeds: 3}'
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from clipkit.approaches.base import Stage
from clipkit.approaches.optimization import Optimizer
from clipkit.approaches.stacked import SCORES
from clipkit.approaches.together import Outcome, Recipe
from clipkit.errors import UserError

__all__ = ["Search"]

RATES = ("lr", "weight_decay")


@dataclass(frozen=True)
class Search:
    """A grid of settings, each trained from several seeds.

    Args:
        settings: in the order in which ties are broken; each by name.
        seeds: how many: the run's own and those that follow it.
    """

    settings: tuple[dict[str, float], ...]
    seeds: int = 1

    @classmethod
    def read(cls, asked: Mapping[str, Any], *, numbers: Sequence[str] = ()) -> "Search":
        """All combinations of what a mapping lists, the last key's values changing first.

        Args:
            asked: "seeds", and for "lr", "weight_decay" and numbers of the head a value or a list of them.
            numbers: the names of those.

        Raises:
            UserError: another key, an empty list, or a value that is no such number.
        """
        if not isinstance(asked, Mapping):
            raise UserError(f"approach.search={asked}: a mapping is expected, such as {{lr: [3e-4, 1e-3], seeds: 3}}")
        valid = [*RATES, *numbers, "seeds"]
        for key in asked:
            if key not in valid:
                near = get_close_matches(str(key), valid, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(f"approach.search: there is no {key} here; {hint}choose from {', '.join(valid)}")
        seeds = asked.get("seeds", 1)
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise UserError(f"approach.search.seeds={seeds}: how many is expected, 1 or more")
        grid = {key: _values(key, value) for key, value in asked.items() if key != "seeds"}
        return cls(tuple(dict(zip(grid, values, strict=True)) for values in product(*grid.values())), seeds)

    def check(self, stages: Mapping[str, Stage], *, monitor: str, averaged: bool) -> None:
        """Raise a `UserError` where heads on stored features cannot do what stages and approach ask for.

        Args:
            stages: of the approach.
            monitor: the score that chooses.
            averaged: whether the approach averages weights.
        """
        active = [stage for stage in stages.values() if stage.epochs > 0]
        if len(active) != 1:
            raise UserError(f"approach.search trains in place of one stage, and {len(active)} have epochs")
        stage, train = active[0], active[0].train
        missing = [
            *([] if train.image_frozen else ["a frozen image tower (train.image_groups=0, train.norms=groups)"]),
            *(["projections that stay as they are (train.projections=false)"] if train.projections else []),
            *(["stored views (views=4, not fresh)"] if stage.views == "fresh" else []),
            *(["accumulate=1"] if stage.accumulate != 1 else []),
            *(["patience=null"] if stage.patience is not None and len(self) > 1 else []),
            *(["approach.ema=null"] if averaged else []),
        ]
        if missing:
            raise UserError(f"approach.search trains heads on stored features: it needs {', and '.join(missing)}")
        if monitor not in SCORES:
            raise UserError(f"approach.monitor={monitor}: approach.search chooses by {', '.join(SCORES)}")

    def __len__(self) -> int:
        """How many heads that are."""
        return len(self.settings) * self.seeds

    def heads(self, seed: int) -> list[tuple[int, dict[str, float]]]:
        """Seed and setting of each head, those of one setting side by side."""
        return [(seed + more, setting) for setting in self.settings for more in range(self.seeds)]

    def recipes(self, seed: int, optimizer: Optimizer) -> list[Recipe]:
        """How each is trained; what the search does not name is the stage's."""
        rates = {
            "lr": optimizer.group_lr.get("heads", optimizer.lr),
            "weight_decay": optimizer.group_weight_decay.get("heads", optimizer.weight_decay),
        }
        return [
            Recipe(own, **{name: setting.get(name, rate) for name, rate in rates.items()})
            for own, setting in self.heads(seed)
        ]

    def decide(self, outcomes: Sequence[Outcome], *, monitor: str, seed: int) -> tuple[int, pd.DataFrame]:
        """The setting with the best mean score over its seeds, the first of equals, and a table with a row a head.

        A head without a finite score counts as worse than any.

        Raises:
            UserError: in every setting a head has diverged.
        """
        sign = -1 if monitor.endswith("loss") else 1
        worst = -sign * math.inf
        scores = np.array([outcome.scores.get(monitor, worst) for outcome in outcomes])
        means = np.where(np.isnan(scores), worst, scores).reshape(-1, self.seeds).mean(1)
        best = int(np.argmax(sign * means))
        if not np.isfinite(means[best]):
            raise UserError(
                "approach.search: every setting has a head whose answers hold NaN or infinity; add a smaller lr"
            )
        rows = [
            {
                **setting,
                "seed": own,
                "epoch": outcome.epoch,
                **outcome.scores,
                f"mean {monitor}": means[k // self.seeds],
                "chosen": k // self.seeds == best,
            }
            for k, ((own, setting), outcome) in enumerate(zip(self.heads(seed), outcomes, strict=True))
        ]
        return best, pd.DataFrame(rows)


def _values(key: str, value: Any) -> list[float]:
    """What is listed for a key, or the one value."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    smallest = 0 if key in RATES else -math.inf
    if not values or not numbers or min(values) < smallest or (key == "lr" and min(values) == 0):
        said = ", ".join(map(str, values))
        raise UserError(
            f"approach.search.{key}=[{said}]: numbers are expected"
            f"{', greater than 0' if key == 'lr' else ', 0 or greater' if key in RATES else ''}, one or more"
        )
    return [float(one) for one in values]
