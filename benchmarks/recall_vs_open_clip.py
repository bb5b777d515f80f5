"""What the same budget teaches: recall@1 on the emoji set beside open_clip's trainer, the same towers from scratch.

Run: python -m benchmarks.recall_vs_open_clip --seeds 0 1 2        (writes benchmarks/TRAINING.md)
Install: pip install "clipkit-train[bench]"

Both trainers get the training split of the embedded emoji set (open_clip as PNG files and a list with one row for each
picture and caption), open_clip's own architecture in a small size with random weights, the same number of steps, batch,
learning rate, warm-up, cosine, weight decay and precision. Nothing is chosen by validation: the last weights count, and
all models are asked the same, by the formulas of clipkit's evaluator. Ours is trained as clipkit's default recipe does
(several right answers, contrast among pictures, concepts together in a batch, its augmentation). `--plain` adds one
with open_clip's targets and crops.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/recall_vs_open_clip.py`

import clipkit
from benchmarks.peers import CORES, Contestant, run_to_end, write_section
from clipkit.data.datamodule import PairData
from clipkit.data.sources.emoji import emoji
from clipkit.evaluation.base import Part
from clipkit.metrics import retrieval_metrics

ARCH = "emoji-vit"
SIZES = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 4, "width": 192, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
WEIGHT_DECAY = 0.2
WANTED = ("i2t_recall@1", "t2i_recall@1")
PLAIN = [
    "approach.targets=hard",
    "approach.image_contrast=0",
    "approach.together=false",
    "data.augmentation=clip",
]


def export(folder: Path) -> tuple[Path, int, int]:
    """The training pictures as PNG files and their list; how many pictures and rows these are."""
    records = emoji().select("train")
    (folder / "pictures").mkdir(parents=True)
    listed, rows = folder / "train.tsv", 0
    with listed.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["image", "caption"])
        for row in range(len(records)):
            file = folder / "pictures" / f"{row:05d}.png"
            records.reader(records.image_name(row)).save(file)
            for caption in records.captions(row):
                writer.writerow([file, caption])
                rows += 1
    return listed, len(records), rows


def open_clip_trainer(listed: Path, options: argparse.Namespace, *, epochs: int, steps: int, seed: int) -> Contestant:
    arguments = {
        "--model": ARCH,
        "--train-data": listed,
        "--dataset-type": "csv",
        "--csv-img-key": "image",
        "--csv-caption-key": "caption",
        "--batch-size": options.batch,
        "--workers": CORES,
        "--precision": "fp32",
        "--device": "cpu",
        "--epochs": epochs,
        "--warmup": round(0.1 * steps),
        "--lr": options.lr,
        "--wd": WEIGHT_DECAY,
        "--beta1": 0.9,
        "--beta2": 0.98,
        "--eps": 1e-6,
        "--save-frequency": 0,
        "--seed": seed,
        "--logs": "logs",
        "--name": "run",
    }
    return "open_clip_train.main", [str(part) for pair in arguments.items() for part in pair]


def clipkit_trainer(
    options: argparse.Namespace, extra: list[str], *, cache: Path, epochs: int, seed: int
) -> Contestant:
    stage = "approach.stages.towers"
    return "clipkit.train", [
        "backbone=open_clip",
        f"backbone.name={ARCH}",
        "backbone.pretrained=false",
        "data=emoji",
        f"data.workers={CORES}",
        "approach.text_bank=false",
        "approach.stages.heads.epochs=0",
        f"{stage}.epochs={epochs}",
        f"{stage}.batch_size={options.batch}",
        f"{stage}.optimizer.lr={options.lr}",
        f"{stage}.optimizer.weight_decay={WEIGHT_DECAY}",
        f"{stage}.optimizer.group_lr={{}}",
        f"{stage}.optimizer.group_weight_decay={{}}",
        f"{stage}.scheduler.warmup=0.1",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.limit_val_batches=0",
        "evaluators=[]",
        "report=false",
        f"seed={seed}",
        f"cache_dir={cache}",
        "hydra.run.dir=run",
        *extra,
    ]


def recall(name: str) -> dict[str, float]:
    """Recall of a model by the formulas of clipkit's evaluator, on validation and both subsets of test."""
    model = clipkit.load(name)
    data = PairData(emoji(), preprocess=model.encoder.preprocess, tokenize=model.encoder.tokenize)
    data.find_broken()
    found = {}
    for split, subset in (("val", "seen"), ("test", "seen"), ("test", "unseen")):
        part = Part(model, data, data.records.select(split, subset), lambda what, done, total: None)
        group = torch.from_numpy(part.records.groups)
        metrics = retrieval_metrics(
            part.image_embeds, part.text_embeds, image_group=group, text_group=group[part.text_owner]
        )
        found |= {f"{split}/{subset}/{key}": value for key, value in metrics.items() if key in WANTED}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20, help="of open_clip's list; clipkit takes no more steps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--plain", action="store_true", help="also clipkit with open_clip's targets and crops")
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place), Path(place) / "cache"
        (folder / "configs").mkdir()
        (folder / "configs" / f"{ARCH}.json").write_text(json.dumps(SIZES))
        open_clip.add_model_config(folder / "configs")
        listed, pictures, rows = export(folder / "data")
        steps = rows // options.batch * options.epochs  # open_clip drops an epoch's last, smaller batch
        epochs = steps // -(-pictures // options.batch)  # never more steps than open_clip takes
        for seed in options.seeds:
            contestants = {
                "open_clip's trainer": open_clip_trainer(
                    listed, options, epochs=options.epochs, steps=steps, seed=seed
                ),
                **(
                    {"clipkit, plain": clipkit_trainer(options, PLAIN, cache=cache, epochs=epochs, seed=seed)}
                    if options.plain
                    else {}
                ),
                "clipkit": clipkit_trainer(options, [], cache=cache, epochs=epochs, seed=seed),
            }
            for number, (name, contestant) in enumerate(contestants.items()):
                run = folder / f"{seed}-{number}"
                wall = run_to_end(contestant, run, threads=CORES, open_clip_configs=str(folder / "configs"))
                weights = run / "logs" / "run" / "checkpoints" / f"epoch_{options.epochs}.pt"
                model = f"open_clip:{ARCH}/{weights}" if weights.exists() else str(run / "run")
                measured = {"wall_s": wall, **recall(model)}
                results.setdefault(name, []).append(measured)
                print(f"  seed {seed}, {name}: {measured}", flush=True)
    places = [name for name in results["clipkit"][0] if name != "wall_s"]
    lines = [
        "| | " + " | ".join([*results, "goal: clipkit − open_clip ≥ 0"]) + " |",
        "|---" * (len(results) + 2) + "|",
        *(compared(results, name) for name in places),
        "| wall time, s | " + " | ".join(f"{mean(runs, 'wall_s'):.0f}" for runs in results.values()) + " | |",
    ]
    text = (
        f"{pictures:,} training pictures with {rows:,} captions. A ViT of {SIZES['vision_cfg']} and a text transformer "
        f"of {SIZES['text_cfg']}, {SIZES['embed_dim']} dimensions in common. {steps} steps of open_clip, "
        f"{epochs * -(-pictures // options.batch)} of clipkit ({epochs} epochs), batches of {options.batch}, float32, "
        f"AdamW with learning rate {options.lr} and weight decay {WEIGHT_DECAY}; mean "
        "(each seed). Wall times hold start-up and imports.\n\n" + "\n".join(lines)
    )
    write_section("Recall, beside open_clip's trainer", text, ["clipkit-train", "open_clip_torch"])


def compared(results: dict[str, list[dict[str, float]]], metric: str) -> str:
    cells = [
        f"{mean(runs, metric):.3f} ({', '.join(f'{run[metric]:.3f}' for run in runs)})" for runs in results.values()
    ]
    gain = mean(results["clipkit"], metric) - mean(results["open_clip's trainer"], metric)
    return f"| {metric} | " + " | ".join(cells) + f" | {gain:+.3f} |"


def mean(runs: list[dict[str, float]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


if __name__ == "__main__":
    main()
