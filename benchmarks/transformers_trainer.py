"""transformers' Trainer on a VisionTextDualEncoderModel, as that library's own contrastive example sets it up.

Run: python -m benchmarks.transformers_trainer --pairs pairs.tsv --batch 32        (see train_vs_transformers.py)

As there: captions are tokenized once beforehand and filled up to `max_length` (128); pictures are read by torchvision,
resized and cut at the centre by scripted transforms, turned into floats and normalised, one by one; the Trainer keeps
its defaults (AdamW, gradient clipping at 1). With `--fill longest` a collator of our own fills captions only up to the
longest of their batch, which the example does not do.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import CenterCrop, ConvertImageDtype, InterpolationMode, Normalize, Resize
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from clipkit.models.tokenizers import named_tokenizer

SIZE, MEAN, STD = 224, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def dual_encoder() -> Any:
    """CLIP's ViT-B/32 and BERT-base, 512 dimensions in common, random weights."""
    vision = CLIPVisionConfig(hidden_act="gelu")  # the sizes of B/32 are its defaults
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, BertConfig(), projection_dim=512)
    return VisionTextDualEncoderModel(config)


class Pairs(Dataset[dict[str, Any]]):
    """Pixels and token ids of each row of a list."""

    def __init__(self, listed: Path, *, length: int, fill: str) -> None:
        with listed.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        self.files = [row["image"] for row in rows]
        tokenizer = named_tokenizer("bert-base-uncased", length)
        padding = "max_length" if fill == "max_length" else False
        self.tokens = tokenizer([row["caption"] for row in rows], padding=padding, truncation=True, max_length=length)
        self.transform = torch.jit.script(
            nn.Sequential(
                Resize([SIZE], interpolation=InterpolationMode.BICUBIC),
                CenterCrop(SIZE),
                ConvertImageDtype(torch.float),
                Normalize(MEAN, STD),
            )
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with torch.no_grad():
            pixels = self.transform(read_image(self.files[index], mode=ImageReadMode.RGB))
        return {
            "pixel_values": pixels,
            "input_ids": self.tokens["input_ids"][index],
            "attention_mask": self.tokens["attention_mask"][index],
        }


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor | bool]:
    longest = max(len(row["input_ids"]) for row in rows)  # of filled captions: the same for all

    def joined(name: str) -> Tensor:
        return torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])

    pixels = torch.stack([row["pixel_values"] for row in rows])
    tokens = {name: joined(name) for name in ("input_ids", "attention_mask")}
    return {"pixel_values": pixels, **tokens, "return_loss": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--fill", choices=["max_length", "longest"], default="max_length")
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    trainer = Trainer(
        model=dual_encoder(),
        args=TrainingArguments(
            output_dir="trainer",
            per_device_train_batch_size=options.batch,
            num_train_epochs=1,
            learning_rate=5e-5,
            weight_decay=0.1,
            remove_unused_columns=False,
            dataloader_num_workers=options.workers,
            use_cpu=True,
            bf16=options.bf16,
            report_to=[],
        ),
        train_dataset=Pairs(options.pairs, length=options.length, fill=options.fill),
        data_collator=collate,
    )
    trainer.train()


if __name__ == "__main__":
    main()
