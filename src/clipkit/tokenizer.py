"""Train a byte-pair tokenizer on the training captions of a data set.

Run: python -m clipkit.tokenizer data=emoji
     python -m clipkit.tokenizer data=pairs data.file=captions.csv vocab_size=8000 name=my_words
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("tokenizer")
def main(config: DictConfig) -> None:
    """Train one tokenizer; its folder loads with `transformers.AutoTokenizer` alone."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.models.bpe import train_bpe
    from clipkit.models.tokenizer_files import holds_tokenizer, save_tokenizer
    from clipkit.runs import build, machine
    from clipkit.runs.output_folder import choose_folder
    from clipkit.runs.record import Run

    machine.prepare_machine(None)
    choose_folder(config, what="a tokenizer", holds=holds_tokenizer)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        captions = build.training_captions(config)
        options = {key: config[key] for key in ("vocab_size", "min_frequency", "max_length", "lowercase")}
        tokenizer = train_bpe(captions, **options)
        save_tokenizer(tokenizer, run.folder)
        run.finish()
        _say(_statistics(tokenizer, captions, config), run.folder)


def _statistics(tokenizer: Any, captions: Sequence[str], config: DictConfig) -> dict[str, str]:
    """What a person wants to know before training with it; lengths count start and end."""
    import numpy as np

    chunks = (list(captions[start : start + 10_000]) for start in range(0, len(captions), 10_000))
    lengths = np.array([len(ids) for chunk in chunks for ids in tokenizer(chunk)["input_ids"]])
    return {
        "captions": f"{len(captions):,}",
        "vocabulary": f"{len(tokenizer):,} tokens of at most {config.vocab_size:,}",
        "tokens a caption": f"{lengths.mean():.1f}",
        "99.5 % have at most": f"{np.quantile(lengths, 0.995, method='inverted_cdf'):.0f}",
        f"longer than {config.max_length}, cut": f"{100 * (lengths > config.max_length).mean():.2f} %",
    }


def _say(statistics: dict[str, str], folder: Path) -> None:
    from rich.table import Table

    from clipkit.runs.progress import as_typed, console

    table = Table(box=None, pad_edge=False, show_header=False)
    for row in statistics.items():
        table.add_row(*row)
    console.print("", table, "", sep="\n")
    use = shlex.quote(f"backbone.text.tokenizer={as_typed(folder)}")
    console.print(f"  tokenizer   {as_typed(folder)}", soft_wrap=True, markup=False)
    console.print(f"  use it      python -m clipkit.train backbone=vit_s16_112 {use}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
