"""What one training command leaves behind, and that it can be repeated, debugged, swept and reused."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipkit as package
from conftest import TINY, Command


def test_the_run_folder_holds_what_is_promised(tiny_run: Path) -> None:
    files = ("config.yaml", "run.json", "metrics.json", "metrics.csv", "report.html")
    for name in (
        *files,
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/model.json",
        "model/model.safetensors",
    ):
        assert (tiny_run / name).exists(), name
    for name in ("training", "test-similarity", "test-retrieval"):
        assert Image.open(tiny_run / "plots" / f"{name}.png").size[0] > 300


def test_metrics_are_one_flat_dict_of_finite_numbers(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert {"test/i2t_recall@1", "test/t2i_recall@10", "test/top1", "test/mean_per_class"} <= metrics.keys()
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert not any(name.startswith("perf") for name in metrics)


def test_metrics_csv_has_every_step_and_epoch(tiny_run: Path) -> None:
    rows = list(csv.DictReader((tiny_run / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows if row["name"] == "train/loss_step"]
    assert steps == list(range(len(steps)))
    assert len([row for row in rows if row["name"] == "val/recall"]) == 3  # epochs
    assert {"lr/heads", "lr/image", "lr/text", "lr/logit_scale"} <= {row["name"] for row in rows}


def test_run_json_tells_how_the_run_was_made(tiny_run: Path) -> None:
    about = json.loads((tiny_run / "run.json").read_text())
    assert about["status"] == "finished"
    assert about["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["peak_memory_mb"] > 100
    assert about["performance"]["towers"]["pairs_per_s"] > 0
    assert about["command"].startswith("python -m clipkit.train backbone=tiny")


def test_the_report_is_one_file_that_opens_offline(tiny_run: Path) -> None:
    page = (tiny_run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert re.findall(r"(?:src|href)=[\"'](?!data:)", page) == []
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]+", "", page)


def test_the_model_folder_is_a_working_model(tiny_run: Path) -> None:
    model = package.load(tiny_run)
    picture = Image.new("RGB", (64, 64), "red")
    assert model.encode_image(picture).shape == (1, 64)
    assert model.similarity([picture], ["a small red circle", "a large blue bar"]).shape == (1, 2)
    assert model.classify(picture, ["red", "blue"]).sum().item() == pytest.approx(1)


def test_evaluate_gives_the_numbers_of_the_run(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "data.num_images=160", "name=again")
    assert done.returncode == 0, done.stderr
    again = json.loads((clipkit.folder / "outputs/evaluate/again/metrics.json").read_text())
    numbers = json.loads((tiny_run / "metrics.json").read_text())
    before = {name: value for name, value in numbers.items() if not name.startswith("val/")}
    # another process rounds otherwise where torch picks kernels by how memory is aligned
    assert {name: again[name] for name in before} == pytest.approx(before, rel=1e-6)
    asked_here_alone = {name.split("/")[1] for name in again.keys() - before.keys()}
    assert asked_here_alone == {"zero_shot", "linear_probe", "knn", "typographic"}


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(clipkit: Command, tiny_run: Path) -> None:
    recipe = (*TINY, "approach.stages.towers.epochs=3", "report=false")
    done = clipkit("train", "-m", *recipe, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    same, other = ((clipkit.folder / f"sweep/{job}/metrics.json").read_text() for job in (0, 1))
    assert same == (tiny_run / "metrics.json").read_text()
    assert same != other


def test_a_failed_job_of_a_sweep_is_recorded_and_the_others_run(clipkit: Command) -> None:
    (clipkit.folder / "empty").mkdir()
    done = clipkit(
        "train", "-m", *TINY, "debug=fast", "report=false", "backbone.image.name=test_efficientnet,resnet1001",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert done.returncode == 2
    good, bad = (json.loads((clipkit.folder / f"sweep/{job}/run.json").read_text()) for job in (0, 1))
    assert good["status"] == "finished"
    assert bad["status"] == "failed"
    assert "timm has no such model" in bad["error"]


def test_debug_fast_goes_through_everything(clipkit: Command) -> None:
    done = clipkit("train", *TINY, "debug=fast", "name=fast")
    assert done.returncode == 0, done.stderr
    assert (clipkit.folder / "outputs/train/fast/report.html").is_file()


@pytest.mark.slow
def test_debug_overfit_brings_the_loss_of_one_batch_to_zero(clipkit: Command) -> None:
    done = clipkit("train", "data=synthetic", "data.num_images=160", "debug=overfit", "trainer=cpu", "name=over",
                   "trainer.threads=2", "report=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader((clipkit.folder / "outputs/train/over/metrics.csv").open())
    losses = [float(row["value"]) for row in rows if row["name"] == "train/loss_step"]
    assert losses[0] > 2
    assert losses[-1] < 0.02


@pytest.mark.parametrize(
    ("targets", "scheduler"),
    [
        ("soft", "plateau"),
        pytest.param("hard", "plateau", marks=pytest.mark.slow),
        pytest.param("hard", "constant", marks=pytest.mark.slow),
        pytest.param("soft", "constant", marks=pytest.mark.slow),
    ],
)
def test_targets_and_schedules_train(clipkit: Command, targets: str, scheduler: str) -> None:
    done = clipkit("train", *TINY, f"approach.targets={targets}", f"scheduler={scheduler}", "optimizer=adam",
                   "approach.stages.towers.epochs=2", "name=x", "report=false", "evaluators=[]")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_zero_shot_trains_nothing_and_leaves_a_classifier(clipkit: Command) -> None:
    done = clipkit("train", "approach=zero_shot", "backbone=emoji_clip", "data=synthetic", "data.num_images=60",
                   "name=zero", "report=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/zero"
    assert not (folder / "checkpoints").exists()
    model = package.load(folder)
    assert model.classify(Image.new("RGB", (64, 64), "red")).shape == (1, 6)
    assert 0 <= json.loads((folder / "metrics.json").read_text())["test/top1"] <= 1


def test_an_own_run_can_be_the_start_of_another(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("train", "backbone=checkpoint", f"backbone.path={tiny_run}/model", "data=synthetic",
                   "data.num_images=160", "trainer=cpu", "debug=fast", "name=next", "report=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stage heads" in done.stdout
