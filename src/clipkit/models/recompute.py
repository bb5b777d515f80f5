"""Memory for time: what lies between two points of a network is computed again in backward instead of being kept.

Run: python -m clipkit.train trainer.gradient_checkpointing=true
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(function: Callable[..., Any], *inputs: Any, inside: nn.Module) -> Any:
    """`function(*inputs)`, of which only the inputs are kept for backward (arXiv 1604.06174).

    Gradients are those of the kept graph: the second time has the random numbers (dropout) and the autocast of the
    first, and running statistics (BatchNorm) are updated the first time only. Without gradient it is a plain call.

    Args:
        function: from tensors, or containers of them, to tensors.
        inside: holds every module that the function runs.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keeping_statistics(inside)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)


@contextmanager
def _keeping_statistics(inside: nn.Module) -> Iterator[None]:
    """For the while, running statistics may change; afterwards they are what they were."""
    norms = [module for module in inside.modules() if isinstance(module, _NormBase) and module.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
