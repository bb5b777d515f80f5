"""The stages of a run, one `Trainer.fit` each, with caching, checkpoints, loggers and resuming."""

import hashlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from clipkit.approaches.base import Approach
from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.group_forwards import change_forwards
from clipkit.ranks import rank, ranks
from clipkit.runs.build import build_trainer
from clipkit.runs.checkpoints import CheckpointWriter, StopSignals, load_checkpoint, newest_checkpoint
from clipkit.runs.machine import training_precision
from clipkit.runs.metrics_file import MetricsFile
from clipkit.runs.progress import console
from clipkit.runs.record import Run
from clipkit.runs.strategy import leave_signals_to_us, settings_for_processes, trains_batchnorm
from clipkit.runs.throughput import Throughput
from clipkit.runs.tracking import open_trackers
from clipkit.runs.training_progress import TrainingProgress
from clipkit.runs.watchdogs import Watchdog

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
    metrics_file = MetricsFile(run.folder / "metrics.csv")
    metrics_file.writes = run.writes
    resumed = _resumed(config, run.folder)
    if resumed is not None:
        approach.load_state_dict(resumed[1]["state_dict"], strict=False)
    approach.to(device)
    approach.prepare(features)
    approach.lengthen(features.data.count("train"))
    active = [name for name, stage in approach.stages.items() if stage.epochs > 0]
    trained = [approach.stages[name].train for name in active]
    change_forwards(
        approach.encoder, trained, recompute=config.trainer.gradient_checkpointing, compiled=config.trainer.compile
    )
    reached = active.index(resumed[1]["stage"]) if resumed is not None else 0
    if resumed is not None:
        metrics_file.begin(active[reached], resumed[1]["global_step"])
    trackers = open_trackers(config, run, metrics_file, resumed=resumed is not None) if run.writes else []
    best: float | None = None
    for index, name in enumerate(active):
        if index < reached:
            continue
        path = resumed[0] if resumed is not None and index == reached else None
        metrics_file.begin(name, resumed[1]["global_step"] if resumed is not None and path is not None else 0)
        for tracker in trackers:
            tracker.begin(index + 1, name, metrics_file.offset)
        throughput = Throughput()
        progress = TrainingProgress(name, approach.monitor, throughput)
        writer = CheckpointWriter(
            run.folder / "checkpoints",
            monitor=approach.monitor,
            patience=approach.stages[name].patience,
            keep=approach.stages[name].keep,
            minutes=config.trainer.checkpoint_minutes,
            steps=config.trainer.checkpoint_steps,
            signals=signals,
        )
        watchdog = Watchdog(run.folder, name, on_alarm=run.alarm)
        torch.manual_seed(_stage_seed(config.seed, name))
        approach.to(device)  # a stage before left it on the CPU
        approach.enter(name, features)
        if rank() > 0:
            torch.manual_seed(_stage_seed(config.seed, f"{name}, process {rank()}"))  # dropout of its own
        stage = approach.stages[name]
        _check_smallest_batch(approach, features.data)
        callbacks = [watchdog, writer, throughput, progress]  # in this order: what is wrong must not be saved
        settings = settings_for_processes(approach, device)
        settings |= {"callbacks": callbacks, "logger": [metrics_file, *trackers]}
        if stage.validate_every > 1:
            settings["check_val_every_n_epoch"] = stage.validate_every
        trainer = _trainer(config, device, stage.epochs, stage.accumulate, **settings)
        leave_signals_to_us(trainer)
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
        approach.validation = writer.scores or approach.validation
        measured = {**throughput.stage, "by_epoch": throughput.by_epoch}
        run.note(performance={**run.about.get("performance", {}), name: measured})
    signals.wait_for_step = False
    return [metrics_file, *trackers], best


def _resumed(config: DictConfig, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, with its content; None where a run begins."""
    if config.resume is None:
        return None
    if str(config.resume).endswith(".ckpt"):
        found: tuple[Path, dict[str, Any]] | None = (Path(config.resume), load_checkpoint(Path(config.resume)))
    else:
        found = newest_checkpoint(folder)
    before = ranks() if found is None else found[1]["callbacks"]["CheckpointWriter"]["ranks"]
    if found is not None and before != ranks():
        raise UserError(
            f"{found[0]} was written by {before} process{'es' if before > 1 else ''} training together, and now there "
            f"{'are' if ranks() > 1 else 'is'} {ranks()}: the numbers would not be the same. Take as many devices as "
            "before, or start a new run from its weights with backbone=checkpoint"
        )
    return found


def _check_smallest_batch(approach: Approach, data: PairData) -> None:
    """Refuse batches of a single picture where BatchNorm is trained: it has no deviation."""
    count, size = data.count("train"), approach.stage.batch_size
    smallest = count // max(1, -(-count // size)) // ranks()
    if count > 0 and smallest < 2 and trains_batchnorm(approach):
        raise UserError(
            f"stage {approach.stage_name}: {count:,} pictures in batches of at most {size} make a batch of one"
            f"{' in a process' if ranks() > 1 else ''}, and this image tower trains BatchNorm, which needs two or "
            "more: take another batch_size"
        )


def _trainer(config: DictConfig, device: torch.device, epochs: int, accumulate: int, **settings: Any) -> pl.Trainer:
    return build_trainer(
        config,
        precision=training_precision(config.trainer.precision),
        max_epochs=epochs,
        log_every_n_steps=config.trainer.log_every_n_steps or (1 if device.type == "cpu" else 10),
        accumulate_grad_batches=accumulate,
        **settings,
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
    source = "fresh pictures every epoch"
    if features.data.served.image_features is not None:
        stored = features.data.served.image_features["train"].values()
        views, size = len(next(iter(stored))), sum(array.nbytes for array in stored)
        source = f"stored features, {views} view{'s' if views > 1 else ''} of each picture, {size / 1e6:,.0f} MB"
    return f"{stage.epochs} epochs of {count:,} pictures ({source}), {trained / 1e6:.2f} M weights trained"
