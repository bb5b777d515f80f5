"""How the groups of the towers are run in training: computed again in backward, to save memory; compiled, to save time.

Run: python -m clipkit.train trainer.gradient_checkpointing=true
     python -m clipkit.train trainer.compile=true
"""

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.recompute import recomputed
from clipkit.models.towers import Tower

__all__ = ["change_forwards"]

COMPILERS = ("g++", "clang++", "cl")


def change_forwards(
    encoder: DualEncoder, stages: Iterable[Trained], *, recompute: bool = False, compiled: bool = False
) -> None:
    """Change how each group (block, layer, stage of a tower) runs, in place; weights and their names stay.

    Args:
        encoder: whose towers are changed.
        stages: what will be trained.
        recompute: of a group that is trained, keep the input alone, and compute the rest again in backward
            (`recomputed`): same gradients, dropout and statistics included. What runs without gradient is as before.
        compiled: by torch.compile, each at its first use; a tower without groups is compiled whole.

    Raises:
        UserError: a tower without groups is to be trained with `recompute`; `compiled` without a C++ compiler.
    """
    stages = list(stages)
    towers: dict[str, tuple[Tower, bool]] = {
        "image": (encoder.image, any(not trained.image_frozen for trained in stages)),
        "text": (encoder.text, any(not trained.text_frozen for trained in stages)),
    }
    if compiled:
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), *COMPILERS))):
            raise UserError(
                f"trainer.compile=true: no C++ compiler is found ({', '.join(COMPILERS)}). Install one, say where "
                "it is (CXX=PATH), or use trainer.compile=false"
            )
        # blocks share their code and differ in a number (stochastic depth): one compilation each, not 8 for all
        dynamo: Any = import_module("torch._dynamo")
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 128)
    for name, (tower, is_trained) in towers.items():
        count = tower.num_groups if recompute or compiled else 0
        if recompute and is_trained and count == 0:
            raise UserError(
                f"trainer.gradient_checkpointing=true: this {name} tower ({type(tower.model).__name__}) has no groups "
                "to compute again. Use trainer.gradient_checkpointing=false; chunk_size in a stage saves memory too"
            )
        if recompute and getattr(getattr(tower.model, "config", None), "use_cache", False):
            tower.model.config.use_cache = False  # keys and values for a next token, which a second run would add to
        groups = tower.group_modules(count)[:count]
        for group in groups or ([tower.model] if compiled else []):
            forward: Callable[..., Any] = group.forward
            if compiled:
                forward = torch.compile(forward)
            if recompute and groups:
                forward = partial(_again, forward, group)
            # not `group.compile()`: `__call__` would then be compiled, with the hooks that run towers in halves
            vars(group)["forward"] = forward


def _again(forward: Callable[..., Any], group: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`forward(*args, **kwargs)`, computed again in backward. All tensors are handed on as inputs: their device says
    whose random state is kept."""
    return recomputed(lambda args, kwargs: forward(*args, **kwargs), args, kwargs, inside=group)
