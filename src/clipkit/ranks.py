"""The processes that train one model together: which of them this is, and what they tell each other.

Everything here also works where there is only one process, and then costs nothing. Messages between processes go
through a group of their own on the processor, so that a GPU's queue of work is never waited for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clipkit.errors import UserError

__all__ = [
    "Place",
    "barrier",
    "broadcast",
    "cores_shared_by",
    "counts_of_all",
    "first_on_each_machine",
    "from_first",
    "gather",
    "has_lost_others",
    "highest",
    "in_turns",
    "jobs_at_once",
    "join",
    "leave",
    "place",
    "process_group",
    "rank",
    "ranks",
]

T = TypeVar("T")
U = TypeVar("U")
PATIENCE = timedelta(days=7)  # one process may compute for hours while the others wait; a dead one is noticed otherwise


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together.

    Args:
        rank: its number among all, 0 … `ranks` − 1.
        local_rank: its number on its machine, 0 … `local_ranks` − 1: the GPU that it uses.
        machine: the number of its machine.
        address, port: where process 0 can be reached.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    machine: int = 0
    address: str = "127.0.0.1"
    port: int = 0


class _State:
    place = Place()
    messages: Any = None


def join(own: Place, *, backend: str) -> None:
    """Meet the other processes; returns when all are there.

    Args:
        own: where this process stands.
        backend: of the tensors' group: "gloo" on processors, "nccl" on GPUs.

    Raises:
        UserError: the others cannot be reached.
    """
    if own.ranks == 1 or dist.is_initialized():
        _State.place = own
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = own.address, str(own.port)
    if backend == "nccl":
        torch.cuda.set_device(own.local_rank)
    try:
        dist.init_process_group(backend, rank=own.rank, world_size=own.ranks, timeout=PATIENCE)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise UserError(
            f"process {own.rank} of {own.ranks} does not reach the others at {own.address}:{own.port}: {error}"
        ) from error
    _State.place = own
    _State.messages = process_group() if backend == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)


def leave() -> None:
    """The end of what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _State.place, _State.messages = Place(), None


def place() -> Place:
    """Where this process stands."""
    return _State.place


def cores_shared_by() -> int:
    """How many processes share the cores that this one may use: SLURM may have given each task cores of its own."""
    bound = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1)
    return 1 if bound and "SLURM_PROCID" in os.environ else place().local_ranks


def jobs_at_once() -> int:
    """How many jobs of a multirun share this machine, as `clipkit.runs.grid_jobs` has counted them."""
    return int(os.environ.get("CLIPKIT_JOBS_AT_ONCE", 1))


def process_group() -> dist.ProcessGroup | None:
    """The group of tensors on the processes' devices; None where there is one process alone."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


def rank() -> int:
    """The number of this process, 0 … `ranks()` − 1."""
    return dist.get_rank() if process_group() is not None else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if process_group() is not None else 1


def barrier() -> None:
    """Wait until every process is here."""
    if ranks() > 1:
        dist.barrier(group=_messages())


def gather(value: T) -> list[T]:
    """Every process's value, in order of rank, on every process."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value, group=_messages())
    return found


def broadcast(value: T) -> T:
    """Process 0's value, on every process."""
    if ranks() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, group=_messages())
    return holder[0]


def in_turns(items: Sequence[T], compute: Callable[[T], U]) -> list[U]:
    """What `compute` makes of each item, in order, on every process; each process computes every so many-th of them."""
    shares = gather([compute(item) for item in items[rank() :: ranks()]])
    return [shares[index % len(shares)][index // len(shares)] for index in range(len(items))]


def highest(*values: int) -> tuple[int, ...]:
    """The largest of every process's values, one by one."""
    if ranks() == 1:
        return values
    together = torch.tensor(values, dtype=torch.long)
    dist.all_reduce(together, op=dist.ReduceOp.MAX, group=_messages())
    return tuple(together.tolist())


def counts_of_all(count: int, group: dist.ProcessGroup) -> tuple[int, ...]:
    """The count of every process of a group; over the group of messages where there is one, so that no GPU waits."""
    through = _State.messages if _State.messages is not None and group is dist.group.WORLD else group
    device = torch.device("cuda" if dist.get_backend(through) == "nccl" else "cpu")
    counts = torch.zeros(dist.get_world_size(through), dtype=torch.long, device=device)
    counts[dist.get_rank(through)] = count
    dist.all_reduce(counts, group=through)
    return tuple(counts.tolist())


def from_first(make: Callable[[], T]) -> T:
    """What process 0 makes, on every process; a user's mistake found there is raised on all of them."""
    if ranks() == 1:
        return make()
    answer: tuple[Any, str | None] = (None, None)
    if rank() == 0:
        try:
            answer = (make(), None)
        except UserError as error:
            answer = (None, str(error))
    value, mistake = broadcast(answer)
    if mistake is not None:
        raise UserError(mistake)
    return value  # type: ignore[no-any-return]  # what `make` made


def has_lost_others(error: Exception) -> bool:
    """Whether an error says no more than that another process is gone."""
    return ranks() > 1 and (isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error)))


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """The first process of each machine goes through the block before the others, who find what it left on disk."""
    first = place().local_rank == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def _messages() -> dist.ProcessGroup | None:
    return _State.messages if _State.messages is not None else process_group()
