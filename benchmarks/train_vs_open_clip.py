"""Training steps a second beside open_clip's own trainer: the same ViT-B/32, pictures, captions, batch, precision.

Run: python -m benchmarks.train_vs_open_clip        (writes benchmarks/TRAINING.md; needs an idle machine)
Install: pip install "clipkit-train[bench]"

Both are started by their command line (`open_clip_train.main`, `clipkit.train`), each run in a process of its own, in
turns. Both read the same list of JPEGs with as many loader processes, take a random crop (0.9–1 of the picture), and
train open_clip's ViT-B-32 (151 M weights, 224 pixels, context 77) from random weights with AdamW and hard targets.
A step is counted when the optimiser has taken it, so waiting for pictures, logging and the trainer's own work count.
open_clip fills every caption up to 77 tokens; clipkit cuts a batch at its longest caption, which gives the same result.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/train_vs_open_clip.py`

from benchmarks.peers import Contestant, add_options, captions, clipkit_recipe, measure, write_section


def open_clip_trainer(listed: Path, *, batch: int, workers: int, precision: str) -> Contestant:
    arguments = {
        "--model": "ViT-B-32",
        "--train-data": listed,
        "--dataset-type": "csv",
        "--csv-img-key": "image",
        "--csv-caption-key": "caption",
        "--batch-size": batch,
        "--workers": workers,
        "--precision": {"fp32": "fp32", "bf16": "amp_bfloat16"}[precision],
        "--device": "cpu",
        "--epochs": 1,
        "--warmup": 5,
        "--logs": "none",
        "--name": "run",
    }
    return "open_clip_train.main", [str(part) for pair in arguments.items() for part in pair]


def clipkit_trainer(listed: Path, *, batch: int, workers: int, precision: str) -> Contestant:
    return "clipkit.train", [
        "backbone=open_clip",
        "backbone.name=ViT-B-32",
        "backbone.pretrained=false",
        "data.augmentation=clip",
        *clipkit_recipe(listed, batch=batch, workers=workers, precision=precision),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = add_options(parser).parse_args()

    def contestants(listed: Path, precision: str) -> dict[str, Contestant]:
        shared = {"batch": options.batch, "workers": options.workers, "precision": precision}
        return {"open_clip": open_clip_trainer(listed, **shared), "clipkit": clipkit_trainer(listed, **shared)}

    with tempfile.TemporaryDirectory() as place:
        found = measure(contestants, Path(place), options, required=["open_clip"])
    text = (
        f"Training steps of open_clip's ViT-B-32 ({found.weights / 1e6:.1f} M trained weights on both sides, 224 "
        f"pixels, context 77) from random weights. {found.said} In CLIP's tokens the captions have {tokens(2000)}.\n\n"
        f"{found.table}"
    )
    write_section("Steps a second, beside open_clip's trainer", text, ["clipkit-train", "open_clip_torch"])


def tokens(count: int) -> str:
    """How long such captions are in CLIP's tokens, start and end counted."""
    import open_clip

    lengths = (open_clip.get_tokenizer("ViT-B-32")(captions(count)) != 0).sum(1).tolist()
    return f"{statistics.mean(lengths):.1f} on average ({min(lengths)} … {max(lengths)})"


if __name__ == "__main__":
    main()
