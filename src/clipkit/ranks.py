"""The processes that train one model together: which of them this is, and what they tell each other.

Everything here also works where there is only one process, and then costs nothing.
"""

import torch.distributed as dist

__all__ = ["process_group", "rank", "ranks"]


def process_group() -> dist.ProcessGroup | None:
    """The processes that train together; None where there is one alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


def rank() -> int:
    """The number of this process, 0 … `ranks()` − 1."""
    return dist.get_rank() if process_group() is not None else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if process_group() is not None else 1
