"""Several processes that are one process group over gloo. Imported by the tests beside it.

They are forked from a server that has loaded the libraries, not from the test: a process in which torch has worked out
gradients leaves threads' locks behind that its forks wait for.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_processes(count: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """What `work`, a function of a module or a `partial` of one, returns in each of `count` processes, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clipkit.approaches.contrastive", "torch.nn.parallel"])
    workers = [context.Process(target=_run, args=(rank, count, work, folder)) for rank in range(count)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 100
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()
    failures = [file.read_text() for file in folder.glob("*.txt")]
    assert not failures, "\n".join(failures)
    assert [worker.exitcode for worker in workers] == [0] * count
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _run(rank: int, count: int, work: Callable[[], Any], folder: Path) -> None:
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), count), rank=rank, world_size=count)
        torch.save(work(), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
