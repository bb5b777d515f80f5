"""Running a transformers encoder in two halves, by skipping layers: no model's forward is written again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerStack"]


class LayerStack:
    """The stack of layers of a transformers encoder, and its execution from or up to one of them.

    The model's own `forward` runs each time, so masks, relative positions and pooling are its own. Every layer stays
    at its place (models count them, and read their attributes); those to be skipped hand on what they are given. Not
    for two threads on one model.

    Args:
        model: an encoder that maps `input_ids` and `attention_mask` to `last_hidden_state`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = self._find()

    def run(self, tokens: dict[str, Tensor]) -> Any:
        """The model's whole output."""
        return self.model(**tokens)

    def until(self, layer: int, tokens: dict[str, Tensor]) -> Tensor:
        """What enters layer number `layer` (0 … the number of layers): [M, L, F]."""
        seen: list[Tensor] = []
        with self._skipping(self.layers[layer:]):
            if layer < len(self.layers):
                hook = self.layers[layer].register_forward_pre_hook(
                    lambda _, args, kwargs: seen.append(_hidden(*args, **kwargs)), with_kwargs=True
                )
            else:
                hook = self.layers[-1].register_forward_hook(lambda _, args, output: seen.append(_first(output)))
            with hook:
                self.model(**tokens)
        return seen[0]

    def onwards(self, layer: int, hidden: Tensor, tokens: dict[str, Tensor]) -> Any:
        """The model's output, when `hidden` [M, L, F] enters layer number `layer`."""
        with self._skipping(self.layers[:layer]):
            if layer < len(self.layers):
                hook = self.layers[layer].register_forward_pre_hook(
                    lambda _, args, kwargs: _exchanged(hidden, args, kwargs), with_kwargs=True
                )
            else:
                hook = self.layers[-1].register_forward_hook(lambda _, args, output: self._as_output(hidden))
            with hook:
                return self.model(**tokens)

    def can_split(self) -> bool:
        """Whether two halves give what the whole gives, tried on two short texts: cut at both ends and amidst."""
        if not self.layers:
            return False
        tokens = self._short_texts()
        try:
            with self._evaluated():
                whole = self.run(tokens).last_hidden_state.nan_to_num()
                for layer in (0, len(self.layers) // 2, len(self.layers)):
                    joined = self.onwards(layer, self.until(layer, tokens), tokens).last_hidden_state
                    if not torch.equal(whole, joined.nan_to_num()):
                        return False
            return True
        except (TypeError, AttributeError, LookupError, RuntimeError, ValueError):
            return False

    @cached_property
    def _values(self) -> int | None:
        """How many values a layer returns as a tuple; None: the hidden state alone."""
        outputs: list[Any] = []
        with self._evaluated(), self.layers[0].register_forward_hook(lambda _, args, output: outputs.append(output)):
            self.run(self._short_texts())
        return len(outputs[0]) if isinstance(outputs[0], tuple) else None

    def _as_output(self, hidden: Tensor) -> Any:
        return hidden if self._values is None else (hidden, *[None] * (self._values - 1))

    @contextmanager
    def _skipping(self, layers: list[nn.Module]) -> Iterator[None]:
        """For the while, these layers return the hidden state that they are given."""
        if layers:
            _ = self._values  # found now, while every layer runs
        own = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            vars(layer)["forward"] = lambda *args, **kwargs: self._as_output(_hidden(*args, **kwargs))
        try:
            yield
        finally:
            for layer, before in zip(layers, own, strict=True):
                del vars(layer)["forward"]
                if before is not None:
                    vars(layer)["forward"] = before

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        modes = {module: module.training for module in self.model.modules()}
        try:
            with torch.no_grad():
                self.model.eval()
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _short_texts(self) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {
            "input_ids": torch.tensor([[1, 2, 3], [1, 2, 0]], device=device),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]], device=device),
        }

    def _find(self) -> list[nn.Module]:
        """The longest list of modules of one class."""
        lists = [list(module) for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max((layers for layers in lists if len({type(layer) for layer in layers}) == 1), key=len, default=[])


def _hidden(*args: Any, **kwargs: Any) -> Any:
    """A layer's first argument."""
    return args[0] if args else kwargs["hidden_states"]


def _exchanged(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A layer's arguments with this hidden state."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
