"""A few-shot stage on stored views beside one that runs the whole tower every epoch: time, and accuracy.

Run: python -m benchmarks.few_shot_cache                 (writes benchmarks/FEW_SHOT.md; needs an idle machine)
     python -m benchmarks.few_shot_cache --only speed    one of the two tables

Each run is `python -m clipkit.train approach=aamp_mlp …` in a process of its own, with an empty feature cache. The
clock runs over the training stage, from the start of the encoding of the views to the last epoch's end: validation
every epoch, checkpoints and the trainer's own work count; imports, reading and the final evaluation do not.
Speed is that of a 12-block ViT with random weights, which knows nothing; accuracy is that of `backbone=emoji_clip`.
Frozen and trained blocks compute in one number type: where the frozen ones alone are in bfloat16 (the default on some
processors), the trained block is most of either way's time, and nothing is to be gained by storing what is before it.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/few_shot_cache.py`

from benchmarks.peers import CORES, ROOT, write_section

SHOTS, EPOCHS = 16, 50
WANTED = {(0, "1"): 20.0, (1, "1"): 3.5, (0, "4"): 8.0, (1, "4"): 2.5}  # by trained groups and views
PRECISION = {
    "fp32": ["trainer.precision=32-true", "trainer.frozen_precision=fp32"],
    "bf16": ["trainer.precision=bf16-mixed", "trainer.frozen_precision=bf16"],
    "default": [],
}
Case = tuple[int, str]
CASES: list[Case] = [(groups, views) for groups in (0, 1) for views in ("fresh", "1", "4")]


def make_model(folder: Path, *, name: str, image_size: int) -> None:
    """A dual encoder with a timm ViT of random weights, which passes as aligned."""
    import torch

    from clipkit.models.dual_encoder import DualEncoder
    from clipkit.models.folder import save_model
    from clipkit.models.image import TimmImageTower
    from clipkit.models.model import Model
    from clipkit.models.projection import LinearProjection
    from clipkit.models.text_transformer import CausalTextTower

    torch.manual_seed(0)
    image = TimmImageTower(name, image_size=image_size)
    assert image.num_groups == 12
    text = CausalTextTower(width=64, layers=2, heads=4, mlp=128, tokenizer="bytes", max_length=64)
    projection = partial(LinearProjection, embed_dim=256)
    save_model(Model(DualEncoder(image, text, projection=projection, aligned=True)), folder)


def make_pictures(folder: Path, classes: int) -> int:
    """The embedded set's classes with the most training pictures, as folders; how many pictures will train."""
    import numpy as np

    from clipkit.data.sources.emoji import emoji

    records = emoji()
    largest = np.argsort(-np.bincount(records.select("train").labels), kind="stable")[:classes]
    for split in ("train", "test"):
        part = records.select(split)
        for row in np.flatnonzero(np.isin(part.labels, largest)).tolist():
            place = folder / split / f"class {int(part.labels[row]):02d}"
            place.mkdir(parents=True, exist_ok=True)
            part.reader(part.image_name(row)).convert("RGB").save(place / f"{row}.png")
    return sum(min(SHOTS, len(list(place.iterdir()))) for place in (folder / "train").iterdir())


def run(case: Case, folder: Path, *arguments: str) -> dict[str, Any]:
    """One training run in an empty folder; seconds of its stage (wall clock and processor), and its metrics."""
    groups, views = case
    folder.mkdir(parents=True)
    line = [
        *("approach=aamp_mlp", f"data.shots={SHOTS}", "trainer=cpu", "report=false", "evaluators=[classify]"),
        *(f"approach.stages.head.epochs={EPOCHS}", f"approach.stages.head.views={views}"),
        *(f"approach.stages.head.train.image_groups={groups}", "cache_dir=cache", "hydra.run.dir=run", *arguments),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    log = folder / "log.txt"
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.few_shot_cache", "--inside", json.dumps(line)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"clipkit.train {' '.join(line)} failed:\n{log.read_text()[-4000:]}")
    found: dict[str, Any] = json.loads((folder / "stage.json").read_text())
    found["metrics"] = json.loads((folder / "run" / "metrics.json").read_text())
    found["metrics"] = {name.replace("/seen/", "/"): value for name, value in found["metrics"].items()}
    print(f"  {case}: {found['wall_s']:.1f} s, top-1 {found['metrics']['test/top1']:.3f}", flush=True)
    return found


def inside(arguments: list[str]) -> None:
    """`clipkit.train` with a stopwatch around its stages."""
    import clipkit.runs.training as training

    whole = training.train_stages

    def timed(*parts: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = whole(*parts)
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
        Path("stage.json").write_text(json.dumps(seconds))
        return result

    training.train_stages = timed
    sys.argv = ["clipkit.train", *arguments]
    runpy.run_module("clipkit.train", run_name="__main__", alter_sys=True)


def speed(options: argparse.Namespace, folder: Path) -> str:
    """The table of times: every case in turn, `repeats` times."""
    make_model(folder / "model", name=options.tower, image_size=options.image_size)
    pictures = make_pictures(folder / "pictures", options.classes)
    data = ["data=folder", f"data.root={folder / 'pictures'}", "data.augmentation=affine_color"]
    given = [*data, "backbone=checkpoint", f"backbone.path={folder / 'model'}", f"trainer.threads={options.threads}"]
    given += PRECISION[options.precision]
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in CASES}
    for turn in range(options.repeats):
        for case in CASES if turn % 2 == 0 else CASES[::-1]:
            found[case].append(run(case, folder / f"{turn} {case}", *given))
    lines = [
        "| trained groups | pictures | stage, s (processor s) | times as fast (turns) | in processor s | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for (groups, views), runs in found.items():
        wall, processor = (statistics.median(run[key] for run in runs) for key in ("wall_s", "cpu_s"))
        shown = []
        for clock in ("wall_s", "cpu_s"):
            quotients = [a[clock] / b[clock] for a, b in zip(found[groups, "fresh"], runs, strict=True)]
            shown.append(f"{statistics.median(quotients):.1f} ({min(quotients):.1f} … {max(quotients):.1f})")
        last = " | | " if views == "fresh" else f"{shown[0]} | {shown[1]} | ≥ {WANTED[groups, views]:g}"
        lines.append(f"| {groups} | {_views(views)} | {wall:.1f} ({processor:.1f}) | {last} |")
    said = (
        f"`{options.tower}` at {options.image_size} pixels (12 blocks, random weights), {pictures} training pictures "
        f"of {options.classes} classes ({SHOTS} shots), {EPOCHS} epochs, the approach's other values as they are; "
        f"{options.threads} threads, precision {options.precision}. Every run in a process of its own, in turns, "
        f"{options.repeats} each; medians."
    )
    return said + "\n\n" + "\n".join(lines)


def accuracy(options: argparse.Namespace, folder: Path) -> str:
    """The table of test accuracies on the embedded set, mean over seeds of the draw and of the training."""

    def one(job: tuple[Case, int]) -> dict[str, float]:
        case, seed = job
        given = ("data=emoji", f"seed={seed}", f"data.split_seed={seed}", "trainer.threads=1")
        metrics: dict[str, float] = run(case, folder / f"seed{seed} {case}", *given)["metrics"]
        return metrics

    jobs = [(case, seed) for case in CASES for seed in options.seeds]
    with ThreadPoolExecutor(CORES) as pool:  # nobody looks at the time here
        found_by = dict(zip(jobs, pool.map(one, jobs), strict=True))
    lines = ["| trained groups | pictures | top-1 (each seed) | weighted F1 |", "|---|---|---|---|"]
    for case in CASES:
        runs = [found_by[case, seed] for seed in options.seeds]
        top1, f1 = ([found[f"test/{name}"] for found in runs] for name in ("top1", "f1_weighted"))
        each = ", ".join(f"{value:.3f}" for value in top1)
        lines.append(
            f"| {case[0]} | {_views(case[1])} | {statistics.mean(top1):.3f} ({each}) | {statistics.mean(f1):.3f} |"
        )
    said = (
        f"`approach=aamp_mlp data=emoji data.shots={SHOTS} approach.stages.head.epochs={EPOCHS}` from "
        f"`backbone=emoji_clip`, whose training has seen these pictures with captions; `test/seen`, seeds "
        f"{', '.join(map(str, options.seeds))} (`seed`, `data.split_seed`)."
    )
    return said + "\n\n" + "\n".join(lines)


def _views(views: str) -> str:
    return {"fresh": "augmented anew every epoch", "1": "stored, V = 1"}.get(views, f"stored, V = {views}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "accuracy"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tower", default="vit_small_patch16_224", help="a timm ViT of 12 blocks")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--precision", choices=list(PRECISION), default="fp32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        inside(json.loads(options.inside))
        return
    with tempfile.TemporaryDirectory() as place:
        if options.only != "accuracy":
            title = f"Stored views beside fresh augmentation: time, {options.precision}"
            write_section(title, speed(options, Path(place) / "speed"), ["timm"], page="FEW_SHOT.md")
        if options.only != "speed":
            text = accuracy(options, Path(place) / "acc")
            write_section("Stored views beside fresh augmentation: accuracy", text, ["timm"], page="FEW_SHOT.md")


if __name__ == "__main__":
    main()
