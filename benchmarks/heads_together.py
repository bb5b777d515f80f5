"""Three seeds of eight settings of a head, trained together and one after another, on stored features of emoji_clip.

Run: python -m benchmarks.heads_together      (some minutes on two cores; writes a section of benchmarks/FEW_SHOT.md)

"One after another" is measured twice: by the same batched function with one head at a time, and as the approach's own
stage under Lightning's trainer (without checkpoints, loggers and the start of a process, which a run has besides). Of
those a few heads are timed each turn, and their mean is taken 24 times. CPU seconds are of this process, all threads.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}  # before torch is loaded: threads that spin would take others' turn

import pytorch_lightning as pl
import torch

from benchmarks.peers import CORES, write_section
from clipkit.approaches.classifying import Classifying
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.runs import build
from clipkit.runs.compose import compose_config

SEARCH = {"lr": [3e-4, 1e-3, 3e-3, 1e-2], "margin": [0.1, 0.25], "seeds": 3}
HEADS = 24
SHOTS = 16
GOAL = 5
Seconds = tuple[float, float]  # on the clock, of the processor


class Bench:
    """One encoder, one data set and its stored features; approaches are made anew for each measurement."""

    def __init__(self, approach: str, folder: Path) -> None:
        chosen = [f"approach={approach}", "data=emoji", f"data.shots={SHOTS}", "trainer=cpu"]
        self.config = compose_config("train", chosen)
        build.resolve_stages(self.config, chosen)
        encoder = build.build_encoder(self.config)
        data = build.build_data(self.config, encoder)
        data.find_broken()
        self.features = FrozenFeatures(encoder, data, FeatureStore(folder))

    def approach(self, search: dict[str, Any] | None) -> Classifying:
        config = self.config.copy()
        config.approach.search = search
        approach, _ = build.build_approach(config, self.features.encoder)
        assert isinstance(approach, Classifying)
        return approach

    def searched(self, search: dict[str, Any]) -> Classifying:
        """All heads of a search, trained together."""
        approach = self.approach(search)
        approach.prepare(self.features)
        return approach

    def staged(self) -> Classifying:
        """One head, as the approach's own stage under the trainer."""
        approach = self.approach(None)
        approach.prepare(self.features)
        approach.enter("head", self.features)
        trainer = pl.Trainer(
            max_epochs=approach.stage.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(approach, datamodule=self.features.data)
        return approach


def timed(work: Callable[[], Any], times: int = 1) -> Seconds:
    clock, busy = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return time.perf_counter() - clock, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--approach", default="aamp_mlp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=3, help="heads timed one after another each turn, of 24")
    parser.add_argument("--threads", type=int, default=CORES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.approach, Path(folder))
        one = {"lr": 1e-3}
        ways: dict[str, tuple[Callable[[], Any], int, int]] = {  # work, heads it trains, times
            "together": (lambda: bench.searched(SEARCH), HEADS, 1),
            "one after another, by the same function": (lambda: bench.searched(one), 1, options.sample),
            "one after another, as the approach's own stage": (bench.staged, 1, options.sample),
        }
        bench.searched({**one, "seeds": 2})  # stores the features, loads what is loaded at first use
        bench.staged()
        turns: list[dict[str, Seconds]] = []
        for turn in range(options.repeats):
            found = {}
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                work, heads, times = ways[name]
                clock, busy = timed(work, times)
                found[name] = (clock * HEADS / heads / times, busy * HEADS / heads / times)
                print(f"  turn {turn + 1}, {name}: {found[name][0]:.1f} s, {found[name][1]:.1f} CPU s", flush=True)
            turns.append(found)
        train, val = (bench.features.data.split(split) for split in ("train", "val"))
        stage = bench.approach(None).stages["head"]
        width = bench.features.encoder.embed_dim
    lines = [
        "| 24 heads | seconds | together is … times as fast (median; turns min … max) | CPU seconds | … times |",
        "|---|---|---|---|---|",
    ]
    for name in ways:
        clocks, busies = zip(*(turn[name] for turn in turns), strict=True)
        ratios = [[turn[name][k] / turn["together"][k] for turn in turns] for k in (0, 1)]
        shown = [f"{statistics.median(r):.1f} ({min(r):.1f} … {max(r):.1f})" for r in ratios]
        cells = shown if name != "together" else ["", ""]
        lines.append(
            f"| {name} | {statistics.median(clocks):.1f} | {cells[0]} | {statistics.median(busies):.1f} | {cells[1]} |"
        )
    said = (
        f"`approach={options.approach}`, {len(train):,} training pictures ({SHOTS} shots of "
        f"{len(train.class_names)} classes) in {stage.views} views, {len(val):,} to validate, embeddings of {width}; "
        f"{stage.epochs} epochs in batches of {stage.batch_size}, {options.threads} threads, {options.repeats} turns. "
        f'Of each "one after another" heads timed a turn: {options.sample}. Wanted: {GOAL} times as fast as the '
        "stages. Stages here leave out checkpoints, `metrics.csv` and the start of a process."
    )
    write_section("Heads trained together", said + "\n\n" + "\n".join(lines), ["clipkit-train"], page="FEW_SHOT.md")


if __name__ == "__main__":
    main()
