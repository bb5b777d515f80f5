"""What exact accumulation costs: a step in chunks (`chunk_size`) beside the same chunks with their graphs kept.

Run: python -m benchmarks.accumulation --repeats 7        (writes benchmarks/ACCUMULATION.md)

Both compare the whole batch in one loss and give the same gradients, which is checked. Forward, loss and backward are
timed, without optimiser, in turns; the peaks of memory are each a process of its own, above what the model and its
gradients take.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.approaches.encoding import embed
from clipkit.losses import contrastive_loss
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower

TRAINED = Trained(image_groups="all", text_groups="all")
SIZES = {  # name: timm arguments of a ViT with 32-pixel patches at 224, text width, text layers
    "small": ({"embed_dim": 384, "depth": 12, "num_heads": 6}, 384, 6),
    "b32": ({}, 512, 12),
}
GOAL = 1.45


def encoder_of(size: str) -> DualEncoder:
    """A CLIP from scratch, everything trained, with patch dropout and stochastic depth."""
    torch.manual_seed(0)
    vision, width, layers = SIZES[size]
    arguments = {**vision, "drop_path_rate": 0.1}
    image = TimmImageTower("vit_base_patch32_clip_224", image_size=224, model_args=arguments, patch_dropout=0.1)
    text = CausalTextTower(width=width, layers=layers, heads=8, mlp=4 * width, tokenizer="bytes", max_length=32)
    encoder = DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=256))
    freeze(encoder.train(), TRAINED)
    return encoder


def batch_of(encoder: DualEncoder, size: int) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)
    return {"image": pixels, "text": encoder.tokenize([f"a caption of picture {number}" for number in range(size)])}


def kept(encoder: DualEncoder, batch: dict[str, Any], chunks: int) -> tuple[Tensor, Tensor]:
    """The same chunks, all graphs kept."""
    texts = {name: value.tensor_split(chunks) for name, value in batch["text"].items()}
    image = [
        encoder.project_image(TRAINED.image_features(encoder, part)) for part in batch["image"].tensor_split(chunks)
    ]
    text = [
        encoder.project_text(TRAINED.text_features(encoder, {name: value[part] for name, value in texts.items()}))
        for part in range(chunks)
    ]
    return torch.cat(image), torch.cat(text)


def step(kind: str, encoder: DualEncoder, batch: dict[str, Any], chunk: int) -> float:
    """Forward, loss and backward, in seconds of the processor: other programs do not count."""
    for parameter in encoder.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()  # not to None: both kinds find their gradients in place
    torch.manual_seed(1)
    start = time.process_time()
    if kind == "chunk_size":
        image, text = embed(encoder, TRAINED, batch, chunk_size=chunk)
    else:
        image, text = kept(encoder, batch, -(-len(batch["image"]) // chunk))
    contrastive_loss(image, text, logit_scale=encoder.logit_scale.exp()).backward()
    return time.process_time() - start


def memory(key: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def peak(kind: str, options: argparse.Namespace) -> float:
    """Megabytes that one step takes beyond the model and its gradients, in a process of its own."""
    sizes = ["--size", options.size, "--batch", str(options.batch), "--chunk", str(options.chunk)]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", kind, *sizes], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure(kind: str, options: argparse.Namespace) -> None:
    encoder = encoder_of(options.size)
    batch = batch_of(encoder, options.batch)
    step(kind, encoder, batch_of(encoder, 2), 1)  # the gradients' memory
    before = memory("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step(kind, encoder, batch, options.chunk)
    print(memory("VmHWM:") - before)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--measure", help="print the memory of one kind of step, and do nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure is not None:
        measure(options.measure, options)
        return
    kinds = ("graph kept", "chunk_size")
    encoder = encoder_of(options.size)
    batch = batch_of(encoder, options.batch)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    gradients: dict[str, list[Tensor]] = {}
    for turn in range(options.repeats + 1):
        for kind in kinds:
            took = step(kind, encoder, batch, options.chunk)
            gradients[kind] = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
            if turn:  # the first turn warms up
                times[kind].append(took)
                print(kind, f"{took:.2f} s", flush=True)
    equal = all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    peaks = {kind: peak(kind, options) for kind in kinds}
    ratios = [again / plain for plain, again in zip(*times.values(), strict=True)]
    lines = [
        "# Accumulation with all negatives",
        "",
        f"`python -m benchmarks.accumulation --repeats {options.repeats} --size {options.size} --batch {options.batch} "
        f"--chunk {options.chunk}` ({platform.machine()}, one torch thread, float32): a CLIP of "
        f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.0f} M weights, all trained, patch dropout and "
        "stochastic depth on. One step is forward, one loss over the whole batch, and backward, in seconds of the "
        "processor. Medians of interleaved repeats; "
        "memory beyond the model and its gradients, each in a process of its own. "
        f"Gradients of the two: {'equal to the bit' if equal else 'NOT equal'}.",
        "",
        "| chunks of the batch | s a step | times (median, of pairs min … max) | peak MB |",
        "|---|---|---|---|",
    ]
    for kind in kinds:
        ratio = "1.00"
        if kind == "chunk_size":
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}), goal ≤ {GOAL}"
        lines.append(f"| {kind} | {statistics.median(times[kind]):.2f} | {ratio} | {peaks[kind]:,.0f} |")
    Path(__file__).with_name("ACCUMULATION.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
