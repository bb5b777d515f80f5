"""Retrieval ranks beside the bare matrix product in chunks: time, and memory beyond the embeddings.

Run: python -m benchmarks.retrieval                (writes benchmarks/EVALUATION.md)
     python -m benchmarks.retrieval --large        also 40,000 pictures × 200,000 captions, once

Both directions, as the evaluator asks them: each picture among all captions, each caption among all pictures. The bare
product computes the same scores in chunks of the same size and throws them away. Memory is the process's peak minus
what it held with the embeddings in place.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/retrieval.py`

from benchmarks.peers import CORES, write_section

WIDTH, CAPTIONS = 512, 5
GOAL_TIME, GOAL_MEMORY, GOAL_LARGE = 1.5, 1.0, 4.0


def inside(images: int, repeats: int) -> dict[str, object]:
    """In a process of its own: quotients of each turn, seconds, and gigabytes."""
    import torch
    from torch.nn.functional import normalize

    from clipkit.metrics.retrieval import SCORES, retrieval_ranks

    torch.set_num_threads(CORES)
    draws = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(images, WIDTH, generator=draws), dim=1)
    text = torch.randn(images * CAPTIONS, WIDTH, generator=draws)
    text += image.repeat_interleave(CAPTIONS, 0)
    text = normalize(text, dim=1)
    group, owner = torch.arange(images), torch.arange(images).repeat_interleave(CAPTIONS)
    ways = ((image, text, group, owner), (text, image, owner, group))
    held = _peak()

    def bare() -> None:
        for query, gallery, _, _ in ways:
            size = max(1, SCORES // len(gallery))
            for start in range(0, len(query), size):
                query[start : start + size] @ gallery.T

    def ours() -> None:
        for query, gallery, query_group, gallery_group in ways:
            retrieval_ranks(query, gallery, query_group=query_group, gallery_group=gallery_group)

    quotients, seconds = [], []
    for _ in range(repeats):
        took = []
        for work in (ours, bare):
            start = time.perf_counter()
            work()
            took.append(time.perf_counter() - start)
        quotients.append(took[0] / took[1])
        seconds.append(took[0])
    return {"quotients": quotients, "seconds": seconds, "beyond": _peak() - held, "whole": _peak()}


def _peak() -> float:
    """Gigabytes at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--inside", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(inside(*options.inside)))
        return
    lines = []
    for images, repeats in [(5_000, options.repeats), *([(40_000, 1)] if options.large else [])]:
        command = [sys.executable, __file__, "--inside", str(images), str(repeats)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        ratios = found["quotients"]
        lines.append(
            f"| {images:,} × {images * CAPTIONS:,} × {WIDTH} | {statistics.median(found['seconds']):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}) "
            f"| {found['beyond']:.2f} GB | {found['whole']:.2f} GB |"
        )
    text = (
        f"Median of the turns (lowest … highest). Wanted: at most {GOAL_TIME} times the bare product and "
        f"{GOAL_MEMORY:g} GB beyond the embeddings for 5,000 × 25,000; 40,000 × 200,000 within {GOAL_LARGE:g} GB.\n\n"
        "| pictures × captions × width | seconds | time ÷ bare product | memory beyond these | whole process |\n"
        "|---|---|---|---|---|\n" + "\n".join(lines)
    )
    write_section("Retrieval", text, (), page="EVALUATION.md")


if __name__ == "__main__":
    main()
