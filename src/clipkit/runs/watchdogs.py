"""What goes wrong in training without a word: a loss that is no number, and a model that cannot tell captions apart.

Run: python -m clipkit.train approach=contrastive
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.approaches.base import Approach
from clipkit.data.batches import Batch
from clipkit.data.datamodule import PairData
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.ranks import gather, highest, process_group, rank, ranks
from clipkit.runs.progress import as_typed, console

__all__ = ["Watchdog"]

READ_EVERY = 10  # steps on a GPU, where reading a number makes the processor wait for the device
BETTER = 0.05  # nats below chance: a model that has begun to learn
SPAN = 20  # batches over which the distance from chance is averaged
PATIENCE = 0.1  # of the stage's batches
MIN_PATIENCE = 50  # batches
FEWEST = math.log(4)  # among two or three candidates one batch says little
CAUSES = (
    "optimizer.lr is too high or too low; the temperature is stuck (train.logit_scale); captions are all alike; "
    "too little is trained (train.image_groups, train.text_groups); captions belong to other pictures"
)


@dataclass(frozen=True)
class _Step:
    """A step whose loss may still be on its way from the device."""

    epoch: int
    step: int
    loss: Tensor
    contrast: Tensor | None
    chance: float
    batch: Batch


class Watchdog(pl.Callback):
    """Stops a stage whose loss or weights are not finite; warns once when its loss stays no better than a guess.

    The loss is read after every step on a processor and every ten steps on a GPU, always before a checkpoint is
    written: none ever holds weights that are not finite, and what the last good one held is still there.

    Args:
        folder: of the run; `bad_batch.json` goes there.
        stage: its name.
        on_alarm: told what the alarm says.
    """

    def __init__(self, folder: Path, stage: str, *, on_alarm: Callable[[str], None]) -> None:
        self.folder, self.stage, self.on_alarm = folder, stage, on_alarm
        self._unread: list[_Step] = []
        self._before: _Step | None = None  # the last step that was read
        self._distances: list[float] = []  # of the last SPAN batches from chance
        self._guessed = 0  # batches in a row that were no better than a guess
        self._alarmed = False
        self._trained: list[Tensor] | None = None  # looked up once: a head's stage asks several times a second

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        contrast, chance = (pl_module.against_chance if isinstance(pl_module, Approach) else None) or (None, 0.0)
        ids: Batch = {name: batch[name] for name in ("image_id", "caption_id", "text_owner") if name in batch}
        loss = outputs["loss"].detach()
        self._unread.append(_Step(trainer.current_epoch, trainer.global_step, loss, contrast, chance, ids))
        if loss.device.type == "cpu" or len(self._unread) >= READ_EVERY:
            self._read(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._check_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Every checkpoint comes by here before it is written."""
        self._check_weights(trainer, pl_module)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"distances": list(self._distances), "guessed": self._guessed, "alarmed": self._alarmed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._distances, self._guessed = list(state_dict["distances"]), state_dict["guessed"]
        self._alarmed = state_dict["alarmed"]

    def _read(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look at the steps that were not looked at yet; all processes see the mean over all, and decide alike."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        pairs = [(s.loss, s.loss if s.contrast is None else s.contrast) for s in steps]
        values = torch.stack([torch.stack([loss.float(), contrast.float()]) for loss, contrast in pairs])
        if process_group() is not None:
            dist.all_reduce(values)
            values = values / ranks()
        for step, (loss, contrast) in zip(steps, values.tolist(), strict=True):
            if not math.isfinite(loss):
                self._stop(trainer, f"the training loss is {loss}", step)
            if step.contrast is not None:
                self._judge(trainer, module, step, contrast)
            self._before = step

    def _judge(self, trainer: pl.Trainer, module: pl.LightningModule, step: _Step, contrast: float) -> None:
        """Count the batches, after the warm-up, whose loss was no better than chance; many in a row are an alarm."""
        batches = int((trainer.max_epochs or 1) * trainer.num_training_batches)
        scheduler = module.stage.scheduler if isinstance(module, Approach) else None
        warm = 0.0 if scheduler is None else scheduler.warmup * batches / trainer.accumulate_grad_batches
        if step.chance < FEWEST or step.step <= warm:
            return
        self._distances = [*self._distances[1 - SPAN :], contrast - step.chance]
        guessing = len(self._distances) == SPAN and fmean(self._distances) > -BETTER
        self._guessed = self._guessed + 1 if guessing else 0
        if self._guessed >= max(MIN_PATIENCE, PATIENCE * batches) and not self._alarmed:
            self._alarmed = True
            alarm = (
                f"stage {self.stage}, epoch {step.epoch + 1}: for {self._guessed:,} batches the training loss has been "
                f"no better than that of a guess ({step.chance:.2f}). Usual causes: {CAUSES}"
            )
            if rank() == 0:
                console.print(f"  [bold]warning[/bold]: {alarm}", soft_wrap=True)
                self.on_alarm(alarm)

    def _check_weights(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Trained weights, running statistics and the optimiser's memory: after a bad step some are not finite."""
        self._read(trainer, module)
        state = [value for o in trainer.optimizers for s in o.state.values() for value in s.values()]
        if self._trained is None:
            self._trained = [*(p for p in module.parameters() if p.requires_grad), *_statistics(module)]
        tensors = [t.detach() for t in (*self._trained, *state) if isinstance(t, Tensor) and t.is_floating_point()]
        if not tensors:
            return
        bad = torch.stack([(~torch.isfinite(t)).any().to(tensors[0].device) for t in tensors]).any()
        if highest(int(bad))[0]:
            self._stop(trainer, "a step has made weights, or the optimiser's memory of gradients, infinite", None)

    def _stop(self, trainer: pl.Trainer, what: str, step: _Step | None) -> None:
        """Write down the batch, and the one before: its gradient may have spoilt the weights; then end the run."""
        listed = [s for s in (self._before, step) if s is not None]
        epoch, number = (listed[-1].epoch, listed[-1].step) if listed else (trainer.current_epoch, trainer.global_step)
        batches = [_gathered(s, trainer) for s in listed]
        path = self.folder / "bad_batch.json"
        said = "could not be written"
        if rank() == 0:
            try:
                content = {"stage": self.stage, "what": what, "batches": batches}
                path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
                said = f"lists its pictures and captions, and those of the step before: {as_typed(path)}"
            except OSError:
                pass  # a full disk must not hide the reason
        kept = (self.folder / "checkpoints" / "last.ckpt").is_file()
        raise UserError(
            f"stage {self.stage}, epoch {epoch + 1}, optimiser step {number:,}: {what}. bad_batch.json {said}. "
            + ("The checkpoints are from before it. " if kept else "There was no checkpoint yet. ")
            + "Lower optimizer.lr, or try trainer.gradient_clip_val=1 and trainer.precision=32-true"
        )


def _statistics(module: pl.LightningModule) -> list[Tensor]:
    return [buffer for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _gathered(step: _Step, trainer: pl.Trainer) -> dict[str, Any]:
    """A step's pictures and captions, of all processes, as plain values."""
    pictures: list[dict[str, Any]] = []
    for part in gather({name: ids.tolist() for name, ids in step.batch.items()}):
        captions: dict[int, list[int]] = {}
        for owner, caption in zip(part.get("text_owner", []), part.get("caption_id", []), strict=True):
            captions.setdefault(owner, []).append(caption)
        pictures += [
            {"image_id": image, "caption_ids": captions.get(row, [])} for row, image in enumerate(part["image_id"])
        ]
    _add_names(pictures, getattr(trainer, "datamodule", None))
    about = {"epoch": step.epoch + 1, "step": step.step, "loss": repr(float(step.loss))}
    return {**about, "pictures": pictures}


def _add_names(pictures: list[dict[str, Any]], data: Any) -> None:
    """The pictures' names and the captions themselves; a stream has no table of them."""
    if not isinstance(data, PairData) or isinstance(data, StreamData):
        return
    train = data.split("train")
    row_of = {image: row for row, image in enumerate(train.image_ids.tolist())}
    texts, text_of = train.caption_texts
    for picture in pictures:
        row = row_of[picture["image_id"]]
        picture["image"] = train.table["image"][row].as_py()
        picture["captions"] = [texts[int(text_of[caption])].as_py() for caption in picture["caption_ids"]]
