"""Averaged weights: what is validated and handed on, while training goes on with its own (Polyak & Juditsky, 1992).

Run: python -m clipkit.train approach.ema=0.999
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clipkit.errors import UserError

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """An exponential moving average of the weights that a stage trains, the temperature among them.

    After step t (1, 2, …) the average moves by 1 − min(`decay`, t / (9 + t)) towards the weights: without that limit a
    short stage would end near the weights it began with. Buffers are not averaged: running statistics (BatchNorm)
    are averages already, and those of the training are used.

    Args:
        decay: how much of the average stays at each step; 0.9999 looks back over some ten thousand steps.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(
                f"approach.ema={decay}: a decay between 0 and 1 is expected, 0.999 for example (null: none)"
            )
        self.decay = decay
        self.weights: dict[str, Tensor] = {}  # by name
        self._live: dict[str, nn.Parameter] = {}

    def begin(self, module: nn.Module) -> None:
        """Average what `module` trains, from now on; a checkpoint's average, if one was loaded, is continued."""
        self._live = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if self.weights.keys() != self._live.keys():
            self.weights = {name: parameter.detach().clone() for name, parameter in self._live.items()}
        self.weights = {name: value.to(self._live[name].device) for name, value in self.weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights as they are after optimiser step number `step`, from 1."""
        move = get_ema_multi_avg_fn(min(self.decay, step / (9 + step)))  # type: ignore[no-untyped-call]  # torch's own
        live: list[Tensor] = [parameter.detach() for parameter in self._live.values()]
        move(list(self.weights.values()), live, step)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights; a second time, back."""
        for name, parameter in self._live.items():
            own = parameter.clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(own)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the average in place of the weights, and forget it."""
        for name, parameter in self._live.items():
            parameter.copy_(self.weights[name])
        self.weights, self._live = {}, {}

    def save(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the average into a state; returns the weights that were there, for `load`."""
        own = {name: state[name] for name in self.weights}
        state.update(self.weights)
        return own

    def load(self, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Take the average out of a state, and put the weights that `save` returned back there."""
        self.weights = {name: state[name].clone() for name in own}
        state.update(own)
