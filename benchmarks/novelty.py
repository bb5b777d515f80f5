"""Novelty detectors with many known pictures: seconds to fit and to score, and memory beyond the pictures' own.

Run: python -m benchmarks.novelty                    (writes benchmarks/DISCOVERY.md)
     python -m benchmarks.novelty --pictures 10000   fewer known ones

Made-up embeddings of 100 classes, each a Gaussian cloud on the unit sphere; half of those scored are of ten classes
more. Each detector, with the options it has when nothing is said, is a process of its own. Memory is the peak minus
what was held with the pictures in place. `rank_average` is of all seven, its reference 1,000 further known pictures.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/novelty.py`

from benchmarks.peers import write_section

WIDTH, CLASSES, UNKNOWN, NOISE = 512, 100, 10, 0.12
GOAL = 5.0


def inside(name: str, pictures: int, scored: int) -> dict[str, float]:
    """In a process of its own: seconds, gigabytes, and how well the novel pictures were noticed."""
    import numpy as np
    from numpy.typing import NDArray
    from sklearn.preprocessing import normalize

    from clipkit.discovery.detectors import make_detectors
    from clipkit.discovery.rank_average import RankAverage
    from clipkit.discovery.signals import Signals
    from clipkit.metrics import novelty_metrics

    draws = np.random.default_rng(0)
    centres = normalize(draws.standard_normal((CLASSES + UNKNOWN, WIDTH), np.float32))

    def seen(labels: NDArray[np.int64]) -> Signals:
        embeds = np.empty((len(labels), WIDTH), np.float32)
        for start in range(0, len(labels), 5_000):  # in parts: making them must not set the peak of the memory
            part = centres[labels[start : start + 5_000]]
            part += NOISE * draws.standard_normal(part.shape, np.float32)
            embeds[start : start + 5_000] = normalize(part)
        cosines = embeds @ centres[:CLASSES].T
        return Signals(embeds, embeds, cosines, 100 * cosines)

    labels = draws.integers(CLASSES, size=pictures)
    known, reference = seen(labels), seen(draws.integers(CLASSES, size=scored))
    novel = np.arange(scored) % 2 == 1
    asked = seen(
        np.where(novel, draws.integers(CLASSES, CLASSES + UNKNOWN, scored), draws.integers(CLASSES, size=scored))
    )
    held = _peak()
    detectors = make_detectors(None if name == "rank_average" else [name])
    start = time.perf_counter()
    for detector in detectors.values():
        detector.fit(known, labels)
    last = RankAverage(list(detectors.values()), reference) if name == "rank_average" else detectors[name]
    fitted = time.perf_counter()
    scores = last.score(asked)
    done = time.perf_counter()
    return {
        "fit_s": fitted - start, "score_s": done - fitted, "beyond_gb": _peak() - held, "whole_gb": _peak(),
        "auroc": novelty_metrics(scores, novel)["auroc"],
    }  # fmt: skip


def _peak() -> float:
    """Gigabytes at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    from clipkit.discovery.detectors import DETECTORS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--scored", type=int, default=1_000)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(inside(options.inside, options.pictures, options.scored)))
        return
    lines = []
    for name in (*DETECTORS, "rank_average"):
        command = [sys.executable, __file__, "--inside", name]
        command += ["--pictures", str(options.pictures), "--scored", str(options.scored)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        lines.append(
            f"| {name} | {found['fit_s']:.1f} | {found['score_s']:.2f} | {found['beyond_gb']:.2f} GB "
            f"| {found['whole_gb']:.2f} GB | {found['auroc']:.3f} |"
        )
        print(lines[-1], flush=True)
    text = (
        f"{options.pictures:,} known pictures of {WIDTH} numbers, {CLASSES} classes; {options.scored:,} scored, half "
        f"of them novel. Wanted: each detector scores these within {GOAL:g} s. `lof` is fitted to 50,000 of the known "
        "ones at most (its option `limit`).\n\n"
        "| detector | fitting, s | scoring, s | memory beyond the pictures | whole process | AUROC |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines)
    )
    write_section("Novelty detectors", text, ("scikit-learn",), page="DISCOVERY.md")


if __name__ == "__main__":
    main()
