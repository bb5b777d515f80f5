"""Clustering of novel pictures: time and memory of the exact tree, and of the path for many pictures.

Run: python -m benchmarks.clustering               (writes benchmarks/DISCOVERY.md)

Pictures are 300 blobs of very different sizes in 512 dimensions, noise nearly as long as the distance between two of
them. Memory is the process's peak; agreement is the adjusted Rand index with the blobs, cut at their true number.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/clustering.py`

from benchmarks.peers import CORES, write_section

WIDTH, BLOBS, NOISE, NEIGHBOURS = 512, 300, 1.3, 10
GOAL_TIME, GOAL_MEMORY = 60, 6
PAGE = "DISCOVERY.md"
WAYS = {  # name -> pictures, and the options
    "exact, Ward": (10_000, {}),
    "exact, average": (10_000, {"linkage": "average"}),
    f"along {NEIGHBOURS} neighbours, Ward": (10_000, {"neighbours": NEIGHBOURS}),
    "small groups first, Ward, forced": (10_000, {"exact_up_to": 5_000}),
    "small groups first, Ward": (50_000, {}),
    "small groups first, average": (50_000, {"linkage": "average"}),
}


def inside(way: str) -> dict[str, float]:
    """In a process of its own: seconds at a given number and with an estimated one, gigabytes, agreement."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from clipkit.discovery.clusters import cluster
    from clipkit.metrics import clustering_metrics

    count, options = WAYS[way]
    draws = np.random.default_rng(0)
    blob = draws.choice(BLOBS, count, p=draws.dirichlet(np.ones(BLOBS)))
    centres = draws.standard_normal((BLOBS, WIDTH), dtype=np.float32)
    embeds = centres[blob] + NOISE * draws.standard_normal((count, WIDTH), dtype=np.float32)
    held = _peak()
    took = []
    with threadpool_limits(CORES):
        for cut in ({"number": len(np.unique(blob))}, {"most": 50}):
            start = time.perf_counter()
            found = cluster(embeds, **cut, **options)
            took.append(time.perf_counter() - start)
            if "number" in cut:
                agreement, peak = clustering_metrics(blob, found.labels)["ari"], _peak()
    return {"given": took[0], "estimated": took[1], "held": held, "peak": peak, "whole": _peak(), "ari": agreement}


def _peak() -> float:
    """Gigabytes at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(inside(options.inside)))
        return
    lines = []
    for way, (count, _) in WAYS.items():
        command = [sys.executable, __file__, "--inside", way]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        lines.append(
            f"| {way} | {count:,} | {found['given']:.1f} | {found['peak']:.2f} GB | {found['estimated']:.1f} "
            f"| {found['whole']:.2f} GB | {found['held']:.2f} GB | {found['ari']:.3f} |"
        )
        print(lines[-1], flush=True)
    text = (
        f"{BLOBS} blobs in {WIDTH} dimensions. Wanted: the exact Ward tree of 10,000 pictures within {GOAL_TIME} s and "
        f"{GOAL_MEMORY} GB. “Estimated” tries 2 … 50 clusters by the silhouette. “Before” is the process with the "
        "embeddings in place, and “agreement” the adjusted Rand index with the blobs, cut at their number.\n\n"
        "| way | pictures | seconds, number given | peak | seconds, number estimated | peak | before | agreement |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(lines)
    )
    write_section("Clustering", text, ("scikit-learn", "scipy"), page=PAGE)


if __name__ == "__main__":
    main()
