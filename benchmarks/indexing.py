"""What it takes to read large data sets: a first start, a second one from the index, and a list of a million rows.

Run: python -m benchmarks.indexing        (writes benchmarks/INDEXING.md)

The sets have the shape of the real ones and made-up captions: COCO 2017 (118,287 + 5,000 pictures, five captions or so
each) with a file behind every name, and a CSV of a million rows without files. Each start is a process of its own; its
seconds do not count imports, its memory does.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = (  # noqa: SIM905  # easier to read
    "a an the man woman dog cat on in with of red blue small large street table plate sitting standing holding next to "
    "some people group train bus kitchen field water young two three white black riding playing near front grass"
).split()
START = """
import json, resource, sys, time
from hydra import compose, initialize_config_module
import clipkit.runs.build as build
import clipkit.data.streaming_datamodule
from clipkit.models.preprocess import ImagePreprocess
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with initialize_config_module("clipkit.conf", version_base="1.3"):
    config = compose("train", overrides=sys.argv[1:])
class Encoder:
    preprocess = ImagePreprocess(224)
    def tokenize(self, texts): raise AssertionError
began = time.perf_counter()
records = build.build_records(config)
read = time.perf_counter() - began
data = build.build_data(config, Encoder())
if "data=pairs" not in sys.argv: data.find_broken()
loader = data.train_dataloader()
order = next(iter(loader.batches))
print(json.dumps({"read_s": read, "ready_s": time.perf_counter() - began, "pictures": len(records),
    "captions": int(records.caption_offsets[-1]),
    "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "imports_mb": base / 1024}))
"""


def sentence(draws: np.random.Generator) -> str:
    return (
        " ".join(WORDS[index] for index in draws.integers(0, len(WORDS), int(draws.integers(8, 14)))).capitalize() + "."
    )


def write_coco(root: Path, train: int, val: int) -> None:
    """Annotations in COCO 2017's true shape, and a file for every picture (hard links to a few)."""
    draws = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for folder, count, first in (("train2017", train, 1), ("val2017", val, train + 1)):
        (root / folder).mkdir()
        images, annotations = [], []
        original = root / folder / "original.jpg"
        for number in range(first, first + count):
            name = f"{number:012d}.jpg"
            if (number - first) % 50_000 == 0:
                original = root / folder / name
                Image.fromarray(draws.integers(0, 256, (48, 64, 3), np.uint8)).save(original)
            else:
                os.link(original, root / folder / name)
            images.append(
                {
                    "license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/{folder}/{name}",
                    "height": 427, "width": 640, "date_captured": "2013-11-14 17:02:52",
                    "flickr_url": f"http://farm9.staticflickr.com/8186/{number}_z.jpg", "id": number,
                }
            )  # fmt: skip
            annotations += [
                {"image_id": number, "id": 10 * number + k, "caption": sentence(draws)}
                for k in range(6 if number % 400 == 0 else 5)
            ]
        value = {"info": {"year": 2017}, "images": images, "licenses": [{"id": 3}], "annotations": annotations}
        (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(value))


def write_pairs(file: Path, rows: int) -> None:
    """One row a picture; there are no pictures."""
    draws = np.random.default_rng(1)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        writer.writerows((f"pictures/{number // 1000:04d}/{number:08d}.jpg", sentence(draws)) for number in range(rows))


def start(cache: Path, *overrides: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", START, *overrides, f"cache_dir={cache}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    lines = [
        "| data | start | reading, s | ready to train, s | peak memory, MB | asked |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_coco(folder / "coco", 118_287, 5_000)
        (folder / "pairs").mkdir()
        write_pairs(folder / "pairs" / "list.csv", options.rows)
        sets = {
            "COCO 2017": (("data=coco", f"data.root={folder / 'coco'}"), "< 10 s and < 1,500 MB; again < 2 s"),
            "a CSV of a million rows": (("data=pairs", f"data.file={folder / 'pairs' / 'list.csv'}"), "< 4,000 MB"),
        }
        for name, (overrides, asked) in sets.items():
            runs: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
            for turn in range(options.repeats if "pairs" not in overrides[0] else 1):
                for kind in runs:
                    runs[kind].append(start(folder / f"cache{turn}", *overrides))
            for kind, found in runs.items():
                read, ready = (statistics.median(run[key] for run in found) for key in ("read_s", "ready_s"))
                memory = max(run["memory_mb"] for run in found)
                shape = f"{name}: {found[0]['pictures']:,} pictures, {found[0]['captions']:,} captions"
                lines.append(f"| {shape} | {kind} | {read:.2f} | {ready:.2f} | {memory:,.0f} | {asked} |")
                print(lines[-1], flush=True)
    text = (
        "# Reading large data sets\n\n"
        f"`python -m benchmarks.indexing --repeats {options.repeats}` ({os.cpu_count()} cores, {platform.machine()}); "
        "medians of processes of their own, the largest peak memory (with all imports, "
        'about 700 MB). "Ready to train" counts the choice of captions and the order of the first epoch; of COCO also '
        "a look at every picture file, on the first start opening each.\n\n" + "\n".join(lines) + "\n"
    )
    Path(__file__).with_name("INDEXING.md").write_text(text)


if __name__ == "__main__":
    main()
