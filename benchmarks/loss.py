"""Memory and time of the losses, forward and backward, beside whole matrices and open_clip's, by batch size.

Run: python -m benchmarks.loss        (about 10 minutes on two cores; writes benchmarks/LOSS.md)

Every measurement is a process of its own, forked where torch is loaded and has done nothing yet; the contestants of a
size take turns. Memory is what the peak (ru_maxrss) rises above embeddings and libraries; the embeddings' gradients are
part of it. open_clip's SigLipLoss works in blocks across processes alone (`dist_impl`): "in blocks" sums its own
`_loss` over blocks of 1,024 × 1,024 on one process.
"""

import argparse
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is loaded. Threads that spin would wait for other programs' turn.
os.environ |= {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}

import torch
from open_clip.loss import ClipLoss, SigLipLoss

from clipkit.losses import contrastive_loss, sigmoid_loss

WIDTH, BLOCK = 512, 1024
OURS, WHOLE, PEER = "ours", "ours, whole matrix", "open_clip ClipLoss"
SIGMOID, SIGMOID_WHOLE, SIGMOID_BLOCKS = "ours, sigmoid", "open_clip SigLipLoss", "open_clip SigLipLoss in blocks"
LINEAR, SQUARE = [OURS, SIGMOID], [OURS, WHOLE, PEER, SIGMOID, SIGMOID_WHOLE, SIGMOID_BLOCKS]
SIZES = {4096: SQUARE, 8192: SQUARE, 16384: SQUARE, 32768: LINEAR}
TURNS = {4096: 5, 8192: 3, 16384: 2, 32768: 1}


def measure(contestant: str, rows: int) -> dict[str, float]:
    """One forward and backward pass in this process: its seconds and extra megabytes."""
    torch.manual_seed(0)
    image, text = torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)
    for embeds in (image, text):
        for part in embeds.split(1024):  # by parts: a peak here would hide some of the loss's
            part /= part.norm(dim=1, keepdim=True)
        embeds.requires_grad_()
    start = -10.0 if "ig" in contestant else 0.0
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (10.0 if start else 1 / 0.07, start))

    def in_blocks(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss, parts = SigLipLoss(), [range(0, len(x), BLOCK), range(0, len(y), BLOCK)]
        return sum(
            loss._loss(x[i : i + BLOCK], y[j : j + BLOCK], scale, bias, negative_only=i != j)
            for i in parts[0]
            for j in parts[1]
        ) / len(parts[0])

    losses: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        OURS: lambda x, y: contrastive_loss(x, y, logit_scale=scale),
        WHOLE: lambda x, y: contrastive_loss(x, y, logit_scale=scale, chunk_size=None),
        PEER: lambda x, y: ClipLoss()(x, y, scale),
        SIGMOID: lambda x, y: sigmoid_loss(x, y, logit_scale=scale, logit_bias=bias),
        SIGMOID_WHOLE: lambda x, y: SigLipLoss()(x, y, scale, bias),
        SIGMOID_BLOCKS: in_blocks,
    }
    few = [embeds[:64].detach().clone().requires_grad_() for embeds in (image, text)]
    losses[contestant](*few).backward()  # loads what is loaded at first use
    before, began, busy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    loss = losses[contestant](image, text)
    loss.backward()
    took, busy = time.perf_counter() - began, time.process_time() - busy
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    megabytes = grown * (1 if sys.platform == "darwin" else 1024) / 1e6
    return {"seconds": took, "cpu": busy, "megabytes": megabytes, "loss": loss.item()}


def in_a_fresh_process(contestant: str, rows: int) -> dict[str, float]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (contestant, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help=f"times the turns of each size, {TURNS}")
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    lines = [
        "| batch | loss | extra MB | seconds | times ours (median, of turns min … max) | CPU seconds | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    memory: dict[tuple[str, int], float] = {}
    slower: dict[tuple[str, int], float] = {}
    busier: dict[tuple[str, int], float] = {}
    for rows in options.rows:
        turns = [
            {one: in_a_fresh_process(one, rows) for one in SIZES[rows]} for _ in range(options.repeats * TURNS[rows])
        ]
        for one in SIZES[rows]:
            memory[one, rows] = statistics.median(turn[one]["megabytes"] for turn in turns)
            own = SIGMOID if "ig" in one else OURS
            assert all(math.isclose(turn[one]["loss"], turn[own]["loss"], rel_tol=1e-4) for turn in turns)
            ratios = [turn[one]["seconds"] / turn[own]["seconds"] for turn in turns]
            slower[one, rows] = statistics.median(ratios)
            busier[one, rows] = statistics.median(turn[one]["cpu"] / turn[own]["cpu"] for turn in turns)
            lines.append(
                f"| {rows:,} | {one} | {memory[one, rows]:,.0f} | "
                f"{statistics.median(turn[one]['seconds'] for turn in turns):.1f} | "
                f"{slower[one, rows]:.2f} ({min(ratios):.2f} … {max(ratios):.2f}) | "
                f"{statistics.median(turn[one]['cpu'] for turn in turns):.1f} | {busier[one, rows]:.2f} |"
            )
            print(lines[-1], flush=True)

    verdicts = []
    if set(SIZES) <= set(options.rows):
        first, last = min(SIZES), max(SIZES)
        verdicts = [
            "| measure | found | goal |",
            "|---|---|---|",
            f"| memory of {PEER} ÷ ours, 16,384 | {memory[PEER, 16384] / memory[OURS, 16384]:.1f} | ≥ 10 |",
            *(
                f"| memory ∝ batchᵖ from {first:,} to {last:,}, {one}: p | "
                f"{math.log(memory[one, last] / memory[one, first]) / math.log(last / first):.2f} | ≤ 1.2 |"
                for one in LINEAR
            ),
            *(
                f"| seconds (CPU seconds) of ours ÷ the whole matrix's, {rows:,} | {1 / slower[WHOLE, rows]:.2f} "
                f"({1 / busier[WHOLE, rows]:.2f}) | ≤ 0.7 |"
                for rows in (8192, 16384)
            ),
            f"| memory of {SIGMOID_BLOCKS} ÷ ours, 16,384 | "
            f"{memory[SIGMOID_BLOCKS, 16384] / memory[SIGMOID, 16384]:.1f} | ≥ 4 |",
        ]
    counts = ", ".join(str(options.repeats * turns) for turns in TURNS.values())
    text = (
        "# Memory and time of the losses\n\n"
        f"`python -m benchmarks.loss --repeats {options.repeats}` ({platform.machine()}, {torch.get_num_threads()} "
        f"threads, float32, embeddings of {WIDTH}, forward and backward, each in a process of its own). Medians of "
        f"{counts} turns by size. Absolute times are the machine's; the ratios are what to read, of CPU seconds where "
        "other programs run besides. The gradients of the embeddings are part of the memory.\n\n"
        + "\n".join(verdicts)
        + "\n\n"
        + "\n".join(lines)
        + "\n"
    )
    Path(__file__).with_name("LOSS.md").write_text(text)


if __name__ == "__main__":
    main()
