"""How long a leaderboard of many runs takes: the whole command, from its start to the last file.

Run: python -m benchmarks.leaderboard        (writes a section of benchmarks/SWEEPS.md)

The runs are made up, each with the files of a real one: a `run.json` with its versions and speeds by epoch, and a
`metrics.json` of 60 numbers. Nine in ten have finished, three seeds share a recipe, and one in five lies in a sweep.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import environment, write_section

GOAL_S = 10.0
APPROACHES = ("contrastive", "mlp", "aamp_mlp", "gda", "tip_adapter", "lora", "linear_probe")
STATUSES = ("failed", "interrupted", "pruned", "running")
MEASURES = (
    "top1", "top5", "f1_weighted", "mean_per_class", "calibration_error", "i2t_recall@1", "i2t_recall@5",
    "i2t_recall@10", "t2i_recall@1", "t2i_recall@5", "t2i_recall@10", "i2t_median_rank", "t2i_median_rank",
)  # fmt: skip


def record(number: int, draws: random.Random) -> tuple[dict[str, Any], dict[str, float]]:
    """What `run.json` and `metrics.json` of one made-up run say."""
    recipe, seed = divmod(number, 3)
    chosen = {"approach": APPROACHES[recipe % len(APPROACHES)], "backbone": "emoji_clip", "data": "emoji"}
    overrides = [*(f"{key}={value}" for key, value in chosen.items()), f"optimizer.lr={1e-4 * (1 + recipe):.6g}"]
    overrides += [f"seed={seed}", f"data.shots={(1, 2, 4, 8, 16)[recipe % 5]}"]
    speeds = {name: [round(draws.uniform(0, 500), 4) for _ in range(10)] for name in ("seconds", "pairs_per_s")}
    about: dict[str, Any] = {
        "status": "finished" if draws.random() < 0.9 else draws.choice(STATUSES),
        "process": number + 2,
        "overrides": overrides,
        "command": " ".join(["python -m clipkit.train", *overrides]),
        "choices": {**chosen, "optimizer": "adamw", "scheduler": "cosine", "experiment": None, "logger": "csv"},
        "recipe": f"{recipe:016x}",
        "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(1_790_000_000 + 60 * number)),
        "git_commit": f"{draws.getrandbits(160):040x}",
        "versions": dict.fromkeys(("torch", "torchvision", "timm", "transformers", "numpy", "clipkit"), "2.14.1"),
        "hardware": {"machine": "x86_64", "cores": 2, "threads": 2, "gpus": []},
        "performance": {"heads": {"pairs_per_s": 272.0, "by_epoch": speeds}},
        "wall_s": round(draws.uniform(10, 500), 1),
        "peak_memory_mb": draws.randrange(900, 4000),
    }
    if about["status"] == "failed":
        about["error"] = "UserError: the loss is not finite in step 17"
    metrics = {f"test/{part}/{name}": draws.random() for part in ("seen", "unseen") for name in MEASURES}
    shares = [name for name in metrics if "recall" in name or "top" in name]
    return about, {**metrics, **{f"{name}_{end}": draws.random() for name in shares for end in ("low", "high")}}


def make_runs(root: Path, count: int) -> int:
    """That many run folders with the files and sub-folders of real ones; returns their bytes."""
    draws, size = random.Random(0), 0
    for number in range(count):
        job = f"train/multirun/{number // 50:04d}/{number % 50}"
        folder = root / (f"sweep/wide/trials/{number:05d}" if number % 5 == 0 else job)
        about, metrics = record(number, draws)
        for name in ("checkpoints", "model", "plots", "tables"):
            (folder / name).mkdir(parents=True)
            (folder / name / "a file").touch()
        texts = {"run.json": json.dumps(about, indent=1), "config.yaml": "seed: 0\n", "report.html": "<!doctype html>"}
        if about["status"] == "finished":
            texts["metrics.json"] = json.dumps(metrics, indent=1)
        for name, text in texts.items():
            size += (folder / name).write_text(text)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = make_runs(folder / "outputs", options.runs)
        walls = []
        for turn in range(options.repeats):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "clipkit.leaderboard", f"name=turn{turn}"],
                cwd=folder, env=environment(2), check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            walls.append(time.perf_counter() - began)
            print(f"  turn {turn + 1}: {walls[-1]:.2f} s", flush=True)
        page = (folder / "outputs" / "leaderboard" / "turn0" / "leaderboard.html").stat().st_size
    wall = f"{statistics.median(walls):.2f} ({min(walls):.2f} … {max(walls):.2f})"
    text = f"""
{options.runs:,} run folders, {size / 1e6:.0f} MB of records, in the memory of the system (a second look); the whole
command, imports, Markdown, CSV and the page included: **{wall} s**, median of {options.repeats} turns, the fastest and
the slowest (goal: below {GOAL_S:.0f} s).

The page of these runs has {page / 1e6:.1f} MB."""
    write_section(f"A leaderboard of {options.runs:,} runs", text, ["pandas"], page="SWEEPS.md")


if __name__ == "__main__":
    main()
