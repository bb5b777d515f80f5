"""Training steps a second beside transformers' Trainer with a VisionTextDualEncoderModel of the same towers.

Run: python -m benchmarks.train_vs_transformers        (writes benchmarks/TRAINING.md; needs an idle machine)
Install: pip install "clipkit-train[bench]"

Both train a ViT-B/32 (12 layers of width 768, 224 pixels, CLIP's norms, GELU) and BERT-base (12 layers of width 768,
30,522 tokens, read at its pooler) with two linear projections to 512 and a temperature, from random weights; that they
have equally many weights is checked. transformers runs its own CLIP vision model, clipkit timm's of the same sizes. The
Trainer is set up as the library's contrastive example does (see benchmarks/transformers_trainer.py), which fills each
caption up to 128 tokens; clipkit fills up to the longest of a batch. A third contestant shows the Trainer with a
collator that does this too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/train_vs_transformers.py`

from benchmarks.peers import Contestant, add_options, clipkit_recipe, measure, write_section

FILLED, TRIMMED = "transformers, as its example", "transformers, captions filled to the batch's longest"


def transformers_trainer(listed: Path, *, batch: int, workers: int, precision: str, fill: str) -> Contestant:
    arguments = ["--pairs", str(listed), "--batch", str(batch), "--workers", str(workers), "--fill", fill]
    return "benchmarks.transformers_trainer", [*arguments, *(["--bf16"] if precision == "bf16" else [])]


def clipkit_trainer(listed: Path, *, batch: int, workers: int, precision: str) -> Contestant:
    return "clipkit.train", [
        "backbone=vit_b32_224",
        "backbone/text=transformers",
        "backbone.text.name=bert-base-uncased",
        "backbone.text.pretrained=false",
        "backbone.text.pooling=pooler",
        "backbone.text.max_length=128",
        "data.augmentation=none",  # the whole picture's centre, as there
        *clipkit_recipe(listed, batch=batch, workers=workers, precision=precision),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = add_options(parser).parse_args()

    def contestants(listed: Path, precision: str) -> dict[str, Contestant]:
        shared = {"batch": options.batch, "workers": options.workers, "precision": precision}
        return {
            FILLED: transformers_trainer(listed, fill="max_length", **shared),
            TRIMMED: transformers_trainer(listed, fill="longest", **shared),
            "clipkit": clipkit_trainer(listed, **shared),
        }

    with tempfile.TemporaryDirectory() as place:
        found = measure(contestants, Path(place), options, required=[FILLED])
    text = (
        f"Training steps of ViT-B/32 and BERT-base ({found.weights / 1e6:.1f} M trained weights on both sides) from "
        f"random weights. {found.said}\n\n{found.table}"
    )
    packages = ["clipkit-train", "transformers", "accelerate", "timm"]
    write_section("Steps a second, beside transformers' Trainer", text, packages)


if __name__ == "__main__":
    main()
