"""Training CLIP on one GPU, fed from memory: pairs a second and utilisation in bf16; the loss of a very large batch.

Run: python -m benchmarks.gpu                             (writes benchmarks/GPU.md)
     python -m benchmarks.gpu --device cpu --tiny         (does it run? prints only)

Needs torch, timm, transformers and this package.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from clipkit.approaches.optimization import Optimizer, embedding_weights
from clipkit.losses import contrastive_loss
from clipkit.models.byte_tokenizer import byte_tokenizer
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower
from clipkit.models.tokenizers import TransformersTokenizer
from clipkit.runs.flops import UsefulFlops, peak_flops

LENGTH, VOCABULARY = 77, 49_408  # of CLIP's captions, in tokens
COUNTED = 2  # pairs whose operations are counted
BLOCK = 5
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A model, the batch to begin with (halved until it fits), and the share of the peak that is aimed at."""

    title: str
    image: str
    text: dict[str, int]
    pixels: int = 224
    batch_size: int = 1024
    aim: float | None = None


TEXT_B = {"width": 512, "layers": 12, "heads": 8, "mlp": 2048}
TEXT_L = {"width": 512, "layers": 12, "heads": 12, "mlp": 2048}
CASES = (
    Case("ViT-B/32 + text b", "vit_base_patch32_clip_224", TEXT_B, batch_size=4096, aim=0.35),
    Case("ViT-B/16 + text b", "vit_base_patch16_clip_224", TEXT_B, batch_size=2048, aim=0.40),
    Case("ViT-L/14 + text l", "vit_large_patch14_clip_224", TEXT_L, batch_size=1024, aim=0.45),
)
TINY = (Case("tiny", "test_vit", {"width": 32, "layers": 1, "heads": 2, "mlp": 64}, pixels=160, batch_size=8),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small models and batches, nothing is written")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each case")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device: --device cpu --tiny tries the script without one", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a processor"
    peak = peak_flops(name, "bf16-mixed")
    rows = []
    for case in TINY if args.tiny else CASES:
        for compiled in (False,) if args.no_compile else (False, True):
            rows.append(training_row(case, device, compiled=compiled, steps=args.steps, peak=peak))
            print(rows[-1], flush=True)
    losses = loss_rows(256 if args.tiny else 65_536, device)
    text = page(name, peak, rows, losses, sys.argv[1:])
    print(f"\n{text}")
    if not args.tiny:
        Path(__file__).with_name("GPU.md").write_text(text)
    return 0


def page(name: str, peak: float | None, rows: list[str], losses: list[str], arguments: list[str]) -> str:
    """The whole of `GPU.md`."""
    known = (
        "its peak in bf16 is not known" if peak is None else f"{peak / 1e12:,.0f} TFLOP/s in dense bf16 by its maker"
    )
    return "\n".join(
        [
            "# One GPU",
            "",
            f"`{' '.join(['python -m benchmarks.gpu', *arguments])}`: {name}, {known}; torch {torch.__version__}, "
            f"timm {timm.__version__}.",
            "",
            "## Training, fed from memory",
            "",
            f"Forward, backward and fused AdamW, bf16 autocast over float32 weights, {LENGTH} tokens a caption, every "
            "weight trained. GFLOP a pair: what the towers' products, convolutions and attention "
            "take (counted on the modules; the loss is left out, causal attention counts whole).",
            "",
            "| model | compiled | batch | pairs/s | GFLOP a pair | TFLOP/s | utilisation | aim | peak memory, GB |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## The loss alone",
            "",
            "Forward and backward, float32, 512 dimensions; memory beside the embeddings and their gradients.",
            "",
            "| rows | form | time, ms | memory, GB |",
            "|---|---|---|---|",
            *losses,
            "",
        ]
    )


def training_row(case: Case, device: torch.device, *, compiled: bool, steps: int, peak: float | None) -> str:
    """Measure one model; its batch is halved until it fits into the memory."""
    flops = flops_per_pair(case, device)
    size, seconds, memory = case.batch_size, None, 0.0
    while seconds is None and size >= 1:
        try:
            with measured_memory(device) as peak_memory:
                seconds = timed(training_step(case, size, device, compiled=compiled), steps, device)
            memory = peak_memory[0]
        except torch.cuda.OutOfMemoryError:
            size //= 2
        torch.compiler.reset()
        gc.collect()  # compiled functions and their tensors refer to each other
    assert seconds is not None, f"not even one pair of {case.title} fits"
    rate = size / seconds
    share = "–" if peak is None else f"{rate * flops / peak:.1%}"
    cells = [case.title, "yes" if compiled else "no", f"{size:,}", f"{rate:,.0f}", f"{flops / 1e9:.1f}"]
    aim = "–" if case.aim is None else f"{case.aim:.0%}"
    return "| " + " | ".join([*cells, f"{rate * flops / 1e12:.1f}", share, aim, f"{memory:.1f}"]) + " |"


def loss_rows(count: int, device: torch.device) -> list[str]:
    """The dense and the chunked loss of `count` rows."""
    rows = []
    for form, chunk_size in (("dense", None), ("chunked", "auto")):
        image, text = (torch.randn(count, 512, device=device) for _ in range(2))
        image, text = (nn.functional.normalize(x, dim=1).requires_grad_() for x in (image, text))
        scale = torch.tensor(50.0, device=device, requires_grad=True)
        for leaf in (image, text, scale):
            leaf.grad = torch.zeros_like(leaf)  # part of what is there before

        def step(
            image: Tensor = image, text: Tensor = text, scale: Tensor = scale, chunk_size: object = chunk_size
        ) -> Tensor:
            loss: Tensor = contrastive_loss(image, text, logit_scale=scale, chunk_size=chunk_size)  # type: ignore[arg-type]
            loss.backward()
            return loss.detach()

        try:
            with measured_memory(device) as memory:
                seconds = timed(step, 2 * BLOCK, device, warm=2)
            rows.append(f"| {count:,} | {form} | {1000 * seconds:,.1f} | {memory[1]:.2f} |")
        except torch.cuda.OutOfMemoryError:
            rows.append(f"| {count:,} | {form} | does not fit | – |")
        print(rows[-1], flush=True)
    return rows


def build(case: Case, device: torch.device) -> DualEncoder:
    """Random weights; a vocabulary of CLIP's size."""
    tokenizer = TransformersTokenizer(byte_tokenizer(LENGTH), LENGTH)
    text = CausalTextTower(tokenizer=tokenizer, max_length=LENGTH, **case.text)
    text.model.token_embedding = nn.Embedding(VOCABULARY, case.text["width"])
    image = TimmImageTower(case.image, image_size=case.pixels)
    return DualEncoder(image, text, projection=partial(LinearProjection, embed_dim=512)).to(device).train()


def batch(case: Case, size: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Random pictures, uint8, and captions of full length."""
    pixels = torch.randint(0, 256, (size, 3, case.pixels, case.pixels), dtype=torch.uint8, device=device)
    ids = torch.randint(3, VOCABULARY, (size, LENGTH), device=device)
    return pixels, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def embed(encoder: DualEncoder, pixels: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """[B, 512] each, rows of unit length."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        image = encoder.project_image(encoder.image(pixels))  # `encode_image` is without gradient
        return image, encoder.project_text(encoder.text(tokens))


def flops_per_pair(case: Case, device: torch.device) -> float:
    """Of forward and backward through both towers."""
    encoder = build(case, device)
    pixels, tokens = batch(case, COUNTED, device)
    with UsefulFlops() as counter:
        image, text = embed(encoder, pixels, tokens)
        counter.backward = True
        (image * text).sum().backward()
    return counter.total / COUNTED


def training_step(case: Case, size: int, device: torch.device, *, compiled: bool) -> Step:
    """A step of the whole training on one batch that stays in memory."""
    encoder = build(case, device)
    groups = {"towers": [*encoder.parameters()]}
    factory = partial(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-6, fused=True)
    optimizer = Optimizer(factory, lr=1e-4, weight_decay=0.2).build(groups, embedding_weights(encoder))
    pixels, tokens = batch(case, size, device)
    run = torch.compile(embed) if compiled else embed

    def step() -> Tensor:
        image, text = run(encoder, pixels, tokens)
        loss: Tensor = contrastive_loss(image, text, logit_scale=encoder.logit_scale.exp())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def timed(step: Step, steps: int, device: torch.device, *, warm: int = 5) -> float:
    """Seconds of one step, after a few that warm up and compile: the median of blocks of `BLOCK` steps."""
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(max(1, steps // BLOCK)):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(BLOCK):
            step()  # without waiting in between: the processor gives out work ahead of the device
        synchronize(device)
        seconds.append((time.perf_counter() - start) / BLOCK)
    return statistics.median(seconds)


@contextmanager
def measured_memory(device: torch.device) -> Iterator[list[float]]:
    """Afterwards: the peak inside, and how far above the start it was, in GB; nothing is known of a processor."""
    found = [0.0, 0.0]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if device.type == "cuda":
        found[0] = torch.cuda.max_memory_allocated() / 1e9
        found[1] = found[0] - before / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
