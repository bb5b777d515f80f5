"""Running a transformers encoder in two halves, by standing in for its layers: no model's forward is written again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerStack"]


class LayerStack:
    """The stack of layers of a transformers encoder, and its execution from or up to one of them.

    The model's own `forward` runs each time, so masks, relative positions and pooling are its own; only the list of
    layers that it loops over is exchanged for the while. Not for two threads on one model.

    Args:
        model: an encoder that maps `input_ids` and `attention_mask` to `last_hidden_state`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.owner, self.name = self._find()
        self.layers: list[nn.Module] = [] if self.owner is None else list(getattr(self.owner, self.name))

    def run(self, tokens: dict[str, Tensor]) -> Any:
        """The model's whole output."""
        return self.model(**tokens)

    def until(self, layer: int, tokens: dict[str, Tensor]) -> Tensor:
        """What enters layer number `layer` (0 … the number of layers): [M, L, F]."""
        stop = _Stop()
        with self._layers([*self.layers[:layer], stop]):
            self.model(**tokens)
        assert stop.seen is not None
        return stop.seen

    def onwards(self, layer: int, hidden: Tensor, tokens: dict[str, Tensor]) -> Any:
        """The model's output, when `hidden` [M, L, F] enters layer number `layer`."""
        with self._layers([_Start(hidden), *self.layers[layer:]]):
            return self.model(**tokens)

    def can_split(self) -> bool:
        """Whether two halves give what the whole gives, tried on two short texts."""
        if not self.layers:
            return False
        device = next(self.model.parameters()).device
        tokens = {
            "input_ids": torch.tensor([[1, 2, 3], [1, 2, 0]], device=device),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]], device=device),
        }
        was_training = self.model.training
        middle = len(self.layers) // 2
        try:
            with torch.no_grad():
                self.model.eval()
                whole = self.run(tokens).last_hidden_state
                joined = self.onwards(middle, self.until(middle, tokens), tokens).last_hidden_state
            return bool(torch.equal(whole.nan_to_num(), joined.nan_to_num()))
        except (AssertionError, TypeError, AttributeError, IndexError, RuntimeError, ValueError):
            return False
        finally:
            self.model.train(was_training)

    @contextmanager
    def _layers(self, layers: list[nn.Module]) -> Iterator[None]:
        own = getattr(self.owner, self.name)
        setattr(self.owner, self.name, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(self.owner, self.name, own)

    def _find(self) -> tuple[Any, str]:
        """The longest list of modules of one class, and which module holds it under which name."""
        best: tuple[Any, str] = (None, "")
        longest = 0
        for owner in self.model.modules():
            for name, child in owner.named_children():
                one_kind = isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1
                if one_kind and len(child) > longest:  # type: ignore[arg-type]  # a ModuleList
                    best, longest = (owner, name), len(child)  # type: ignore[arg-type]
        return best


class _Stop(nn.Module):
    """Stands where the trunk ends: keeps what comes in, and hands it on."""

    seen: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.seen = hidden
        return hidden


class _Start(nn.Module):
    """Stands where the trunk was: forgets what comes in, and gives what the trunk left."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.hidden
