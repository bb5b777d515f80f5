"""The stages of a run, one `Trainer.fit` each, with caching, checkpoints, loggers and resuming."""

import hashlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from clipkit.approaches.base import Approach
from clipkit.approaches.frozen import FrozenFeatures
from clipkit.data.streaming_datamodule import StreamData
from clipkit.models.group_forwards import change_forwards
from clipkit.runs.build import build_loggers, build_trainer
from clipkit.runs.checkpoints import CheckpointWriter, StopSignals, load_checkpoint, newest_checkpoint
from clipkit.runs.machine import training_precision
from clipkit.runs.metrics_file import MetricsFile
from clipkit.runs.progress import console
from clipkit.runs.record import Run
from clipkit.runs.training_progress import TrainingProgress

__all__ = ["train_stages"]


def train_stages(
    config: DictConfig,
    approach: Approach,
    features: FrozenFeatures,
    run: Run,
    signals: StopSignals,
    device: torch.device,
) -> tuple[list[Any], float | None]:
    """Run every stage that is left; returns the loggers, for what comes after, and the best validation score.

    A resumed run skips the stages that its checkpoint has behind it and continues inside the one it was in.
    """
    loggers = build_loggers(config)
    metrics_file = MetricsFile(run.folder / "metrics.csv")
    resumed = newest_checkpoint(run.folder) if config.resume is not None else None
    if config.resume is not None and str(config.resume).endswith(".ckpt"):
        resumed = Path(config.resume), load_checkpoint(Path(config.resume))
    if resumed is not None:
        approach.load_state_dict(resumed[1]["state_dict"], strict=False)
    approach.to(device)
    approach.prepare(features)
    active = [name for name, stage in approach.stages.items() if stage.epochs > 0]
    trained = [approach.stages[name].train for name in active]
    change_forwards(
        approach.encoder, trained, recompute=config.trainer.gradient_checkpointing, compiled=config.trainer.compile
    )
    reached = active.index(resumed[1]["stage"]) if resumed is not None else 0
    throughput: dict[str, float] = {}
    waiting: dict[str, float] = {}
    best: float | None = None
    for index, name in enumerate(active):
        if index < reached:
            continue
        path = resumed[0] if resumed is not None and index == reached else None
        metrics_file.begin(name, resumed[1]["global_step"] if resumed is not None and path is not None else 0)
        progress = TrainingProgress(name, approach.monitor)
        writer = CheckpointWriter(
            run.folder / "checkpoints",
            monitor=approach.monitor,
            minutes=config.trainer.checkpoint_minutes,
            signals=signals,
        )
        torch.manual_seed(_stage_seed(config.seed, name))
        approach.to(device)  # a stage before left it on the CPU
        approach.enter(name, features)
        stage = approach.stages[name]
        trainer = _trainer(config, stage.epochs, stage.accumulate, [progress, writer], [metrics_file, *loggers])
        if path is not None and resumed is not None:
            console.print(f"  resumed: stage {name} after optimiser step {resumed[1]['global_step']:,}")
        console.print(f"[bold]stage {name}[/bold]: {_describe(approach, name, features)}", soft_wrap=True)
        try:
            trainer.fit(approach, datamodule=features.data, ckpt_path=path)
        finally:
            if isinstance(features.data, StreamData):  # what is broken in a stream shows while it is read
                run.write_broken(features.data.broken)
        if writer.best is not None:
            best = writer.best
            if stage.keep == "best":
                content = load_checkpoint(run.folder / "checkpoints" / "best.ckpt")
                approach.load_state_dict(content["state_dict"], strict=False)
        throughput[name] = round(progress.pairs_per_second, 1)
        waiting[name] = round(sum(progress.waiting) / max(1, len(progress.waiting)), 3)
        run.note(pairs_per_s=throughput, waiting_for_data=waiting)
        _log_performance(trainer, name, progress)
    signals.wait_for_step = False
    return [metrics_file, *loggers], best


def _trainer(
    config: DictConfig, epochs: int, accumulate: int, callbacks: list[pl.Callback], loggers: list[Any]
) -> pl.Trainer:
    return build_trainer(
        config,
        precision=training_precision(config.trainer.precision),
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=config.run_dir,
        enable_checkpointing=False,  # CheckpointWriter does it
        enable_progress_bar=False,  # TrainingProgress does it
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _stage_seed(seed: int, stage: str) -> int:
    """Each stage starts from its own random state, whatever ran before it in this process."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:8], "little")


def _describe(approach: Approach, name: str, features: FrozenFeatures) -> str:
    stage, count = approach.stages[name], features.data.count("train")
    trained = sum(p.numel() for p in approach.parameters() if p.requires_grad)
    source = "augmented pictures"
    if features.data.served.image_features is not None:
        source = f"stored features, {stage.views} view{'s' if stage.views > 1 else ''} of each picture"
    return f"{stage.epochs} epochs of {count:,} pictures ({source}), {trained / 1e6:.2f} M weights trained"


def _log_performance(trainer: pl.Trainer, name: str, progress: TrainingProgress) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({"perf/pairs_per_s": progress.pairs_per_second}, step=trainer.global_step)
        logger.save()
