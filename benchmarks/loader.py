"""How fast training pictures arrive: our loader beside a plain Pillow and torchvision one, on the same files.

Run: python -m benchmarks.loader --repeats 7        (writes benchmarks/LOADER.md; leave the machine alone meanwhile)

Both give random crops of 224 pixels (scale 0.9–1, bicubic), 64 a batch, from the same JPEG files. The plain one
decodes with Pillow and applies torchvision's RandomResizedCrop, ToTensor and Normalize, as training scripts do. Ours
gives bytes, which the model normalises on its device, and captions with their tokens besides. Both run on one thread of
the main process (workers=0); with `--workers N` each has N processes.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from clipkit.data.batches import Served
from clipkit.data.datamodule import PairData
from clipkit.data.images import FolderReader
from clipkit.data.packing import pack
from clipkit.data.records import Record, Records
from clipkit.models.preprocess import ImagePreprocess

SIZE, BATCH = 224, 64
SHAPES = {"640×427": (640, 427), "1280×854": (1280, 854)}
GOALS = {("640×427", "files"): 2.0, ("1280×854", "files"): 2.5, ("640×427", "packed raw"): 8.0}


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Structure at every scale, as photographs have it."""
    draws, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cell in (256, 64, 16, 4):
        small = draws.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        total += (
            np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), float) * cell**0.35
        )
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return Image.fromarray(total.astype(np.uint8))


class Plain(Dataset[Any]):
    """What a training script does."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIZE, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.ToTensor(),
                transforms.Normalize((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), index


def tokens(texts: list[str]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[len(text), *map(ord, text[:15].ljust(15))] for text in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def ours(files: list[Path], cache: Path, workers: int, packed: str | None) -> Callable[[], Iterator[Any]]:
    """Our loader, from the files or from a store of one format."""
    rows = [Record(file.name, (f"picture {file.stem}",)) for file in files]
    records = Records.from_records(rows, reader=FolderReader(files[0].parent), name=files[0].parent.name)
    if packed is not None:
        pack(records, cache / packed / "packed", size=256, format=packed)  # type: ignore[arg-type]
    data = PairData(
        records,
        preprocess=ImagePreprocess(SIZE),
        tokenize=tokens,
        augmentation="clip",
        memory_limit=0,
        workers=workers,
        cache_dir=cache / str(packed),
    )
    data.find_broken()
    assert (data.packed != "none") == (packed is not None)
    data.serve(Served(batch_size=BATCH))
    loader = data.train_dataloader()
    return lambda: iter(loader)


def plain(files: list[Path], workers: int) -> Callable[[], Iterator[Any]]:
    loader = DataLoader(
        Plain(files), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def seconds(epoch: Callable[[], Iterator[Any]]) -> float:
    start = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| pictures | loader | pictures/s | times the plain one (median, of pairs min … max) | goal |",
        "|---|---|---|---|---|",
    ]
    sizes = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (width, height) in SHAPES.items():
            (folder / name).mkdir()
            files = [folder / name / f"{number}.jpg" for number in range(options.pictures)]
            for number, file in enumerate(files):
                photo(width, height, number).save(file, quality=90)
            sizes.append(f"{name}: {statistics.mean(file.stat().st_size for file in files) / 1000:.0f} KB")
            contestants = {
                "plain": plain(files, options.workers),
                "files": ours(files, folder / f"cache {name}", options.workers, None),
                "packed raw": ours(files, folder / f"cache {name}", options.workers, "raw"),
                "packed jpeg": ours(files, folder / f"cache {name}", options.workers, "jpeg"),
            }
            times: dict[str, list[float]] = {kind: [] for kind in contestants}
            for turn in range(options.repeats + 1):
                for kind, epoch in contestants.items():
                    took = seconds(epoch)
                    if turn:  # the first turn warms files and workers
                        times[kind].append(took)
            for kind, taken in times.items():
                ratios = [base / took for base, took in zip(times["plain"], taken, strict=True)]
                rate = options.pictures / statistics.median(taken)
                goal = GOALS.get((name, kind))
                lines.append(
                    f"| {name} | {kind} | {rate:,.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} … "
                    f"{max(ratios):.2f}) | {'' if goal is None else f'≥ {goal}'} |"
                )
                print(lines[-1], flush=True)
    text = (
        "# The loader\n\n"
        f"`python -m benchmarks.loader --repeats {options.repeats} --pictures {options.pictures} --workers "
        f"{options.workers}` ({platform.machine()}, one torch thread; JPEG quality 90, {', '.join(sizes)} a picture). "
        "Medians of interleaved repeats. Absolute rates are the machine's; the ratios are what to read.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    Path(__file__).with_name("LOADER.md").write_text(text)


if __name__ == "__main__":
    main()
