"""Few shots in another style than the starting model has seen: OpenMoji's drawings of 25 kinds of things, 16 of each.

Run: python -m benchmarks.other_style               (needs npm; writes a section of benchmarks/FEW_SHOT.md)
Install: pip install "clipkit-train[build-data,lora]"

`emoji_clip` was trained on Noto's pictures of animals, food, places, activities and objects. Here are outlined drawings
by other artists, with people, faces, flags and signs among them. The classes are the 25 sub-groups of Unicode that
OpenMoji draws most often, at most 60 pictures of each; 20 train and validate, the rest is test. The pictures are
downloaded, not shipped (OpenMoji is CC-BY-SA-4.0).
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/other_style.py`

from benchmarks.peers import write_section
from clipkit.data.emoji.build import PACKAGES, draw, fetch, slug, svg_of

OPENMOJI = "@iconify-json/openmoji@1.2.29"
CLASSES, TRAINING, MOST, SHOTS = 25, 20, 60, 16
TEMPLATE = '["a drawing of {}"]'
APPROACHES = (
    *("linear_probe", "gda", "tip_adapter", "tip_adapter_f", "lp_plus_plus", "cosine_text_init", "mlp", "aamp_mlp"),
    *("logits_mlp", "contrastive_finetune", "aamp_contrastive", "lora"),
)


def make_pictures(root: Path, packages: Path) -> dict[str, int]:
    """Class folders ROOT/{train,test}/CLASS/*.webp; how many pictures each class has."""
    icons = json.loads((fetch(OPENMOJI, packages) / "icons.json").read_text())
    emojibase = fetch(PACKAGES["emojibase"], packages)
    subgroups = json.loads((emojibase / "meta" / "groups.json").read_text())["subgroups"]
    found: dict[str, list[str]] = defaultdict(list)
    for entry in json.loads((emojibase / "en" / "data.json").read_text()):
        name = slug(entry["label"])
        if "subgroup" in entry and svg_of(icons, name) is not None:
            found[subgroups[str(entry["subgroup"])].replace("-", " ")].append(name)
    chosen = sorted(found, key=lambda kind: -len(found[kind]))[:CLASSES]
    for kind in chosen:
        names = sorted(set(found[kind]))
        random.Random(0).shuffle(names)
        for place, name in enumerate(names[:MOST]):
            file = root / ("train" if place < TRAINING else "test") / kind / f"{name}.webp"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(draw(str(svg_of(icons, name))))
    return {kind: min(MOST, len(found[kind])) for kind in sorted(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--approaches", default=",".join(APPROACHES))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--pictures", type=Path, help="draw the class folders here and stop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = options.pictures or Path(place) / "pictures"
        counts = make_pictures(root, Path(place))
        if options.pictures:
            print(counts)
            return
        sweep = Path(place) / "sweep"
        arguments = [
            "experiment=few_shot_curve",
            f"approach={options.approaches}",
            "data=folder",
            f"data.root={root}",
            f"data.templates={TEMPLATE}",
            f"data.shots={SHOTS}",
            f"seed={options.seeds}",
            "report=false",
            "trainer=cpu",
            f"hydra.sweep.dir={sweep}",
        ]
        subprocess.run([sys.executable, "-m", "clipkit.train", "-m", *arguments], check=True)
        rows = list(csv.DictReader((sweep / "few_shot_curve.csv").open()))
    best = sorted((row for row in rows if row["metric"] == "top1"), key=lambda row: -float(row["mean"] or 0))
    lines = [
        f"| {row['approach']} | {float(row['mean']):.3f} ± {float(row['std'] or 0):.3f} | {row['n']} |" for row in best
    ]
    pictures = (
        f"{sum(counts.values())} drawings of {CLASSES} kinds ({min(counts.values())} … {max(counts.values())} each)"
    )
    text = (
        f"{pictures}, {SHOTS} of each to train, up to 4 to validate, "
        f"{sum(counts.values()) - CLASSES * TRAINING} to test; seeds {options.seeds}. `backbone=emoji_clip`, every "
        "approach with its default settings, nothing chosen on test. "
        "Top-1 accuracy on test, mean ± standard deviation; wanted: each above 0.40, the best not below `linear_probe` "
        "(logistic regression on the raw features of the image tower).\n\n"
        "| approach | top-1 | runs |\n|---|---|---|\n" + "\n".join(lines)
    )
    write_section("Another style: OpenMoji", text, ["clipkit-train", "scikit-learn", "resvg_py"], page="FEW_SHOT.md")


if __name__ == "__main__":
    main()
