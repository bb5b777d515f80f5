"""What a run says about its speed, its waiting and its memory: in `run.json` and in every logger, for each epoch."""

import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipkit.runs.metrics_file import read_metrics
from clipkit.runs.throughput import Throughput

NAMES = {
    "pairs_per_s",
    "steps_per_s",
    "waiting_for_data",
    "peak_memory_mb",
    "workers_memory_mb",
}


class Slow(pl.LightningModule):
    """A linear model whose steps take 20 ms, and some seconds for each of four batches of validation."""

    def __init__(self, validation: float = 0.0) -> None:
        super().__init__()
        self.validation = validation
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        time.sleep(0.02)
        loss: Tensor = self.layer(batch["x"]).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.validation)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Pictures:
    """Twenty rows, each of which takes some time to load."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return {"x": torch.full((4,), float(row)), "image_id": torch.tensor(row)}


def train(
    *, loading: float = 0.0, validation: float = 0.0, epochs: int = 2, checkpoint: Path | None = None, **options: Any
) -> Any:
    """Train on batches of five pictures; returns the measurements and the model."""
    throughput, model = Throughput(count_flops=options.pop("count_flops", None)), Slow(validation)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[throughput], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    loader = DataLoader(Pictures(loading), batch_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader, DataLoader(Pictures(0.0), batch_size=5), ckpt_path=checkpoint)
    return throughput, model, trainer


def test_pictures_and_steps_a_second_leave_validation_out() -> None:
    throughput, _, _ = train(accumulate_grad_batches=2, validation=0.5)
    for epoch in throughput.epochs:
        assert 0.08 <= epoch["seconds"] < 1.9  # four steps of 20 ms; validation takes 2 s
        assert epoch["pairs_per_s"] == pytest.approx(20 / epoch["seconds"])
        assert epoch["steps_per_s"] == pytest.approx(2 / epoch["seconds"])
    seconds = sum(epoch["seconds"] for epoch in throughput.epochs)
    assert throughput.stage["pairs_per_s"] == pytest.approx(40 / seconds, rel=1e-3)


def test_time_for_loading_is_told_from_time_for_steps() -> None:
    slow, _, _ = train(loading=0.1, epochs=1, val_check_interval=2, validation=0.5)
    (epoch,) = slow.epochs
    assert epoch["waiting_for_data"] * epoch["seconds"] >= 2  # 500 ms for each of the four batches
    assert (1 - epoch["waiting_for_data"]) * epoch["seconds"] >= 0.08
    assert epoch["seconds"] < 4  # validation in mid-epoch, 4 s together, is neither
    quick, _, _ = train(epochs=1)
    assert quick.epochs[0]["waiting_for_data"] < epoch["waiting_for_data"]


def test_operations_are_counted_once_a_stage_and_change_nothing() -> None:
    plain, expected, _ = train()
    throughput, model, _ = train(count_flops=True)
    assert "tflops_per_s" not in plain.stage
    for epoch in throughput.epochs:
        flops = 20 * 2 * (2 * 4 * 3) / epoch["seconds"]  # forward, and the weights' gradient
        assert epoch["tflops_per_s"] == pytest.approx(flops / 1e12)
        assert "mfu" not in epoch  # of no known device
    assert torch.equal(model.layer.weight, expected.layer.weight)


def compiled_in_place(layer: nn.Module) -> nn.Module:
    layer.compile(backend="eager")
    return layer


def with_compiled_forward(layer: nn.Module) -> nn.Module:
    vars(layer)["forward"] = partial(lambda forward, x: forward(x), torch.compile(layer.forward, backend="eager"))
    return layer


@pytest.mark.parametrize("compile_it", [compiled_in_place, with_compiled_forward, torch.compile])
def test_a_compiled_model_is_not_counted(compile_it: Any) -> None:
    throughput, module = Throughput(count_flops=True), Slow()
    module.layer = compile_it(module.layer)
    throughput.on_train_batch_start(None, module, {"image_id": torch.arange(3)}, 0)  # type: ignore[arg-type]
    assert throughput._counter is None


def test_a_continued_stage_knows_the_epochs_before(tmp_path: Path) -> None:
    first, _, trainer = train(epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    both, _, _ = train(epochs=2, checkpoint=tmp_path / "last.ckpt")
    assert both.epochs[0] == first.epochs[0]
    assert len(both.epochs) == 2


def test_run_json_and_the_loggers_have_every_epoch(tiny_run: Path) -> None:
    measured = json.loads((tiny_run / "run.json").read_text())["performance"]["towers"]
    assert set(measured) == {*NAMES, "by_epoch"}
    assert 0 <= measured["waiting_for_data"] <= 1
    assert measured["peak_memory_mb"] > 100
    table = read_metrics(tiny_run / "metrics.csv")
    for name in NAMES:
        rows = table[table["name"] == f"perf/{name}"]
        assert rows["epoch"].tolist() == [0, 1, 2]
        assert measured["by_epoch"][name] == pytest.approx(rows["value"].tolist(), rel=1e-3)
    assert not any(name.startswith("perf") for name in json.loads((tiny_run / "metrics.json").read_text()))
