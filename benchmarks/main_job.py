"""The default run, several seeds, each in a process of its own: what it reaches, and what it costs.

Run: python -m benchmarks.main_job --seeds 0 1 2        (writes benchmarks/MAIN_JOB.md)
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WANTED = (
    "test/seen/i2t_recall@1",
    "test/seen/t2i_recall@1",
    "test/unseen/i2t_recall@1",
    "test/unseen/t2i_recall@1",
)


def run(seed: int, folder: Path) -> dict[str, float]:
    """One default run with an empty feature cache; its metrics, wall seconds and peak memory."""
    place = folder / f"seed{seed}"
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "clipkit.train", f"seed={seed}", f"hydra.run.dir={place}"],
        check=True,
        env={**os.environ, "CLIPKIT_CACHE": str(folder / f"cache{seed}")},
    )
    metrics = json.loads((place / "metrics.json").read_text())
    about = json.loads((place / "run.json").read_text())
    return {**metrics, "wall_s": time.monotonic() - start, "memory_gb": about["peak_memory_mb"] / 1000}


def table(results: dict[int, dict[str, float]]) -> str:
    """A Markdown table: one row per measure, one column per seed, mean ± standard deviation."""
    lines = [f"| | {' | '.join(f'seed {seed}' for seed in results)} | mean ± sd |", "|---" * (len(results) + 2) + "|"]
    for name in (*WANTED, "wall_s", "memory_gb"):
        values = [result[name] for result in results.values()]
        digits = 0 if name == "wall_s" else 2 if name == "memory_gb" else 3
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{value:.{digits}f}" for value in values)
        lines.append(f"| {name} | {cells} | {statistics.mean(values):.{digits}f} ± {spread:.{digits}f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        results = {seed: run(seed, Path(folder)) for seed in seeds}
    text = (
        "# The default run\n\n"
        f"`python -m benchmarks.main_job --seeds {' '.join(map(str, seeds))}` on {os.cpu_count()} cores "
        f"({platform.machine()}), no GPU, empty feature cache; wall_s includes start-up and imports.\n\n"
        f"{table(results)}\n"
    )
    Path(__file__).with_name("MAIN_JOB.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
