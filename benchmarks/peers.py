"""What the comparisons with other trainers share: a COCO-like folder, alternating runs, one page of results.

Run: see benchmarks/train_vs_open_clip.py, train_vs_transformers.py and recall_vs_open_clip.py
"""

import argparse
import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["CORES", "Contestant", "add_options", "captions", "clipkit_recipe", "environment", "measure", "run_to_end"]
__all__ += ["write_section"]

GOAL = 1.3
CORES = len(os.sched_getaffinity(0))
HEADINGS = {
    "TRAINING.md": "# Training, beside other trainers",
    "FEW_SHOT.md": "# Few-shot training, measured",
    "EVALUATION.md": "# Evaluation, measured and beside other tools",
    "DISCOVERY.md": "# Discovery, measured",
    "SWEEPS.md": "# Sweeps and leaderboards, measured",
}
ROOT = Path(__file__).parents[1]
DISTINCT = 128  # pictures; further ones are links to these
WORDS = (  # noqa: SIM905  # easier to read
    "a a a a the an of on in with and to at next man woman people person dog cat horse train bus street table plate "
    "sitting standing holding riding playing walking large small red white black blue green young old two three some "
    "group kitchen bathroom field water beach grass food pizza sandwich glass bowl bed chair window building sign snow "
    "board wave ball bat racket player giraffe elephant zebra sheep bear bird boat plane truck car motorcycle bicycle "
    "skateboarder surfer umbrella refrigerator microwave toilet mirror couch laptop keyboard clock tower flowers vase"
).split()

Contestant = tuple[str, list[str]]  # a module that trains, and its arguments


def captions(count: int, seed: int = 0) -> list[str]:
    """Sentences as long as COCO's: 8 words or more, 10.5 on average, few above 16, with a full stop."""
    draws = np.random.default_rng(seed)
    lengths = 8 + np.floor(draws.gamma(1.6, 1.85, count)).astype(int)
    return [" ".join(draws.choice(WORDS, length)).capitalize() + "." for length in lengths]


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Structure at every scale, some flat shapes and grain: as many bytes as a photograph of this size."""
    draws, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cell in (256, 64, 16, 4):
        small = draws.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, float) * cell**0.35
    total = (total - total.min()) / (total.max() - total.min()) * 255
    for _ in range(6):
        top, left = int(draws.integers(0, height - 40)), int(draws.integers(0, width - 40))
        total[top : top + int(draws.integers(40, 160)), left : left + int(draws.integers(40, 160))] = draws.uniform(
            0, 255, 3
        )
    grain = draws.normal(0, 9, (height, width, 1))
    return Image.fromarray((total + grain).clip(0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int) -> tuple[Path, str]:
    """`count` JPEGs of 640×427 in `folder`, and pairs.tsv (image, caption, split) beside them.

    Returns:
        The list, and what it holds, in words.
    """
    texts = captions(count)
    (folder / "pictures").mkdir(parents=True)
    sizes = []
    for number in range(count):
        file = folder / "pictures" / f"{number:06d}.jpg"
        if number < DISTINCT:
            photo(640, 427, number).save(file, quality=90)
            sizes.append(file.stat().st_size)
        else:
            os.link(folder / "pictures" / f"{number % DISTINCT:06d}.jpg", file)
    listed = folder / "pairs.tsv"
    with listed.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["image", "caption", "split"])
        writer.writerows(
            (folder / "pictures" / f"{number:06d}.jpg", text, "train") for number, text in enumerate(texts)
        )
    words = [len(text.split()) for text in texts]
    return listed, (
        f"{count:,} JPEGs of 640×427 ({statistics.mean(sizes) / 1000:.0f} KB each), captions of "
        f"{statistics.mean(words):.1f} words on average ({min(words)} … {max(words)})"
    )


def environment(threads: int) -> dict[str, str]:
    """Of every run: no network, these threads, waiting passively (clipkit sets that itself; the others gain by it)."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    return {
        **os.environ,
        **offline,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONUNBUFFERED": "1",
    }


def steps_per_second(
    contestant: Contestant, folder: Path, *, warmup: int, steps: int, threads: int, **job: Any
) -> dict[str, Any]:
    """Start a training program in an empty `folder`; stop it after its measured steps (see benchmarks/steps.py)."""
    folder.mkdir(parents=True)
    module, arguments = contestant
    read, write = os.pipe()
    job = {"module": module, "arguments": arguments, "warmup": warmup, "steps": steps, "report": write, **job}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.steps", json.dumps(job)],
            cwd=folder,
            env=environment(threads),
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        with os.fdopen(read) as reports:
            line = reports.readline()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its loader's processes; the session is its own
        process.wait()
    if not line:
        raise SystemExit(f"{module} ended before its last step:\n{log.read_text()[-4000:]}")
    found: dict[str, Any] = json.loads(line)
    return found


def run_to_end(contestant: Contestant, folder: Path, *, threads: int, **job: Any) -> float:
    """Run a program to its end in an empty `folder`; its wall time in seconds."""
    folder.mkdir(parents=True)
    module, arguments = contestant
    began = time.perf_counter()
    log = folder / "log.txt"
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.steps", json.dumps({"module": module, "arguments": arguments, **job})],
            cwd=folder,
            env=environment(threads),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{log.read_text()[-4000:]}")
    return time.perf_counter() - began


def alternate(
    contestants: Mapping[str, Contestant], folder: Path, *, repeats: int, **options: Any
) -> dict[str, list[dict[str, Any]]]:
    """Each contestant in turn, `repeats` times, every run a process of its own; the first one changes with the turn.

    Raises:
        SystemExit: they do not train equally many weights: it would be no comparison.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(repeats):
        names = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in names:
            found[name].append(steps_per_second(contestants[name], folder / f"{turn} {name}", **options))
            print(f"  turn {turn + 1}, {name}: {found[name][-1]}", flush=True)
    sizes = {name: {run["parameters"] for run in runs} for name, runs in found.items()}
    if len(set().union(*sizes.values())) != 1:
        raise SystemExit(f"different numbers of trained weights: {sizes}")
    return found


@dataclass(frozen=True)
class Measured:
    """A comparison's table in Markdown, its conditions in words, and how many weights both sides train."""

    table: str
    said: str
    weights: int


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What the comparisons of speed can be asked."""
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=CORES)
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    return parser


def clipkit_recipe(listed: Path, *, batch: int, workers: int, precision: str) -> list[str]:
    """The contrastive approach with one stage that trains everything, on pictures that are opened anew each time."""
    return [
        "data=pairs",
        f"data.file={listed}",
        f"data.workers={workers}",
        "data.memory_limit=0",
        "data.packed=none",
        "approach.targets=hard",
        "approach.text_bank=false",
        "approach.image_contrast=0",
        "approach.together=false",
        "approach.stages.heads.epochs=0",
        "approach.stages.towers.epochs=1",
        f"approach.stages.towers.batch_size={batch}",
        "trainer=cpu",
        f"trainer.precision={'bf16-mixed' if precision == 'bf16' else '32-true'}",
        f"cache_dir={listed.parent / 'cache'}",
        "hydra.run.dir=run",
    ]


def measure(
    contestants: Callable[[Path, str], Mapping[str, Contestant]],
    folder: Path,
    options: argparse.Namespace,
    *,
    required: Sequence[str],
) -> Measured:
    """Make pictures in `folder`, and let clipkit and the others train on them in each precision.

    Args:
        contestants: by name, for a list of pictures and a precision; one is called "clipkit".
        folder: an empty one.
        options: see `add_options`.
        required: the others that clipkit must be `GOAL` times as fast as.
    """
    ahead = 4 * options.workers  # batches that loaders prepare: they must not run dry before the last measured step
    count = options.batch * (options.warmup + options.steps + ahead)
    listed, pictures = make_pictures(folder, count * 10 // 9 + 1)  # a tenth becomes clipkit's validation
    lines = [
        "| precision | trainer | steps/s | pairs/s | clipkit is … times as fast (median; turns min … max) | goal |",
        "|---|---|---|---|---|---|",
    ]
    weights, optimizers = 0, {}
    for precision in options.precision:
        found = alternate(
            contestants(listed, precision),
            folder / precision,
            repeats=options.repeats,
            warmup=options.warmup,
            steps=options.steps,
            threads=options.threads,
        )
        for name, runs in found.items():
            weights = runs[0]["parameters"]
            optimizers[name] = runs[0]["optimizer"] + ", fused" * runs[0]["fused"]
            lines.append(f"| {precision} | {row(found, name, options.batch, name in required)} |")
    said = (
        f"Batches of {options.batch}, {options.workers} loader processes, {options.threads} threads; {pictures}. "
        f"{options.steps} steps after {options.warmup}, {options.repeats} turns, each run a process of its own; "
        f"medians. Optimisers: {'; '.join(f'{name}: {kind}' for name, kind in optimizers.items())}."
    )
    return Measured("\n".join(lines), said, weights)


def row(found: Mapping[str, Sequence[Mapping[str, Any]]], name: str, batch: int, required: bool) -> str:
    """A contestant's median, and how many times faster clipkit is, turn by turn."""
    rate = statistics.median(run["steps_per_s"] for run in found[name])
    cells = f"{name} | {rate:.3f} | {rate * batch:.1f}"
    if name == "clipkit":
        return f"{cells} | | "
    pairs = zip(found["clipkit"], found[name], strict=True)
    quotients = [ours["steps_per_s"] / theirs["steps_per_s"] for ours, theirs in pairs]
    spread = f"{statistics.median(quotients):.2f} ({min(quotients):.2f} … {max(quotients):.2f})"
    return f"{cells} | {spread} | {f'≥ {GOAL}' if required else ''}"


def write_section(title: str, text: str, packages: Sequence[str], *, page: str = "TRAINING.md") -> None:
    """Put a section into a page in place of the one with the same title, with command, machine and versions."""
    place = Path(__file__).with_name(page)
    program = Path(sys.argv[0]).stem
    command = " ".join([f"python -m benchmarks.{program}", *sys.argv[1:]])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    machine = f"{CORES} CPU cores ({platform.machine()}), no GPU; {versions}."
    section = "\n\n".join([f"## {title}", f"`{command}`", machine, text.strip()]) + "\n"
    before = place.read_text() if place.exists() else f"{HEADINGS[page]}\n"
    head, *sections = before.split("\n## ")
    kept = {part.partition("\n")[0]: f"## {part.strip()}\n" for part in sections}
    kept[title] = section
    place.write_text("\n".join([head.strip() + "\n", *kept.values()]))
    print(section)
