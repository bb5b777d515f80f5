"""The same model and data through CLIP_benchmark and through `clipkit.evaluate`: the same numbers, and the time.

Run: python -m benchmarks.evaluate_vs_clip_benchmark              (writes benchmarks/EVALUATION.md)
Install: pip install "clipkit-train[bench]"

The model is open_clip's architecture in a small size, trained here for some steps on half of the pictures, so that its
answers are neither chance nor perfect; CLIP_benchmark loads its file by `load_clip`, with open_clip's own transform and
tokenizer.
The data are the embedded set's test pictures as class folders, with CIFAR's templates, and as a list with two captions
a picture. Each tool runs in processes of its own, in turns. Their time is that of the two `evaluate` functions; ours is
that of the evaluators asked for the same, with an empty store. Both also read what they evaluate from disk meanwhile.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also as `python benchmarks/evaluate_vs_clip_benchmark.py`

from benchmarks.peers import CORES, run_to_end, write_section
from benchmarks.recall_vs_open_clip import ARCH, SIZES

TEMPLATES = ("a photo of a {}.", "a blurry photo of a {}.", "a bad photo of the {}.", "a photo of the small {}.")
PAIRED = {  # ours: theirs
    "test/top1": "acc1",
    "test/top5": "acc5",
    "test/mean_per_class": "mean_per_class_recall",
    **{f"test/t2i_recall@{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)},
    **{f"test/i2t_recall@{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)},
}
CLOSE = 1e-3


def export(folder: Path) -> None:
    """The test pictures as class folders (`classes/test/NAME/`) and as a list (`pairs.csv`)."""
    from clipkit.data.sources.emoji import emoji

    records = emoji().select("test")
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption", "split"])
        for row, label in enumerate(records.labels):
            name = records.class_names[label]
            file = folder / "classes" / "test" / name / f"{row:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            records.reader(records.image_name(row)).convert("RGB").save(file)
            (caption,) = records.captions(row)
            for text in (caption, f"a picture of {caption.partition(',')[0]}, number {row}"):
                writer.writerow([file, text, "test"])


def train(folder: Path, *, steps: int) -> None:
    """Write `model.pt`: a few steps on every other picture."""
    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    model, _, transform = open_clip.create_model_and_transforms(ARCH)
    tokenize = open_clip.get_tokenizer(ARCH)
    with (folder / "pairs.csv").open() as stream:
        rows = list(csv.DictReader(stream))[::4]
    pixels = torch.stack([transform(Image.open(row["image"])) for row in rows])
    tokens = tokenize([row["caption"] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    loss_of = open_clip.ClipLoss()
    for step in range(steps):
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:48]
        loss = loss_of(*model(pixels[chosen], tokens[chosen])[:3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
    print(f"loss after {steps} steps: {loss.item():.3f}")
    torch.save(model.state_dict(), folder / "model.pt")


def theirs(folder: Path, *, threads: int, batch: int) -> dict[str, Any]:
    """What CLIP_benchmark says, in this process."""
    import open_clip
    import torch
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from clip_benchmark.models import load_clip
    from PIL import Image
    from sklearn.metrics import balanced_accuracy_score
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(threads)
    open_clip.add_model_config(folder / "configs")
    model, transform, tokenizer = load_clip("open_clip", ARCH, str(folder / "model.pt"), "", device="cpu")
    model.eval()

    class Captioned(Dataset[Any]):
        def __init__(self) -> None:
            with (folder / "pairs.csv").open() as stream:
                rows = list(csv.DictReader(stream))
            self.files = list(dict.fromkeys(row["image"] for row in rows))
            self.texts = [[row["caption"] for row in rows if row["image"] == file] for file in self.files]

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(self.files[index])), self.texts[index]

    def together(samples: list[Any]) -> Any:
        return torch.stack([image for image, _ in samples]), [texts for _, texts in samples]

    classes, captioned = ImageFolder(str(folder / "classes" / "test"), transform), Captioned()
    start = time.perf_counter()
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    weights = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, classes.classes, templates, "cpu", amp=False
    )
    logits, labels = zeroshot_classification.run_classification(
        model, weights, DataLoader(classes, batch_size=batch, num_workers=threads), "cpu", amp=False
    )
    # its own accuracy() turns an array of one number into a float, which NumPy no longer does
    best = logits.topk(5).indices
    found = {f"acc{k}": (best[:, :k] == labels[:, None]).any(1).double().mean().item() for k in (1, 5)}
    found["mean_per_class_recall"] = balanced_accuracy_score(labels, best[:, 0])
    found |= zeroshot_retrieval.evaluate(
        model,
        DataLoader(captioned, batch_size=batch, num_workers=threads, collate_fn=together),
        tokenizer,
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    return {"metrics": found, "seconds": time.perf_counter() - start}


def ours(folder: Path, turn: str) -> dict[str, Any]:
    """What `python -m clipkit.evaluate` says: once about class folders, once about the list."""
    metrics: dict[str, float] = {}
    seconds = 0.0
    for question, arguments in {
        "classify": ["data=folder", f"data.root={folder / 'classes'}", f"templates={list(TEMPLATES)}"],
        "retrieval": ["data=pairs", f"data.file={folder / 'pairs.csv'}"],
    }.items():
        place = folder / f"{turn}-{question}"
        line = [
            f"model=open_clip:{ARCH}/{folder / 'model.pt'}",
            *arguments,
            f"evaluators=[{question}]",
            "split=test",
            f"cache_dir={place}-cache",
            "hydra.run.dir=run",
        ]
        run_to_end(("clipkit.evaluate", line), place, threads=CORES, open_clip_configs=str(folder / "configs"))
        metrics |= json.loads((place / "run" / "metrics.json").read_text())
        seconds += json.loads((place / "run" / "run.json").read_text())["wall_s"]
    return {"metrics": metrics, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--batch", type=int, default=64, help="of CLIP_benchmark")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(theirs(options.inside, threads=CORES, batch=options.batch)))
        return
    import open_clip

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").mkdir()
        (folder / "configs" / f"{ARCH}.json").write_text(json.dumps(SIZES))
        open_clip.add_model_config(folder / "configs")
        export(folder)
        train(folder, steps=options.steps)
        found: dict[str, list[dict[str, Any]]] = {"clipkit": [], "CLIP_benchmark": []}
        for turn in range(options.repeats):
            found["clipkit"].append(ours(folder, str(turn)))
            command = [sys.executable, __file__, "--inside", name, "--batch", str(options.batch)]
            printed = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "TQDM_DISABLE": "1"}
            )
            found["CLIP_benchmark"].append(json.loads(printed.stdout.splitlines()[-1]))
    rows, largest = [], 0.0
    for own, other in PAIRED.items():
        left, right = found["clipkit"][0]["metrics"][own], found["CLIP_benchmark"][0]["metrics"][other]
        largest = max(largest, abs(left - right))
        rows.append(f"| `{own}` / `{other}` | {left:.4f} | {right:.4f} | {abs(left - right):.1e} |")
    quotients = [a["seconds"] / b["seconds"] for a, b in zip(found["clipkit"], found["CLIP_benchmark"], strict=True)]
    text = (
        f"A small model of open_clip's (sizes: `recall_vs_open_clip.py`) after {options.steps} steps; 718 pictures, "
        f"48 classes × {len(TEMPLATES)} templates, 1,436 captions; turns: {options.repeats}.\n\n"
        "| ours / theirs | clipkit | CLIP_benchmark | difference |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Largest difference {largest:.1e} (wanted: at most {CLOSE:.0e}). Seconds, clipkit ÷ CLIP_benchmark: "
        f"{statistics.median(quotients):.2f} ({min(quotients):.2f} … {max(quotients):.2f}); ours are whole runs "
        "but for the imports (loading, opening every picture once, tables, figures, report), theirs the two functions."
    )
    write_section("Beside CLIP_benchmark", text, ("open_clip_torch", "clip-benchmark"), page="EVALUATION.md")
    if largest > CLOSE:
        raise SystemExit(f"the numbers differ by {largest:.1e}")


if __name__ == "__main__":
    main()
