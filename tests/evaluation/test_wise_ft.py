"""WiSE-FT: both ends are the two models, each α is asked on both data sets, and the best is chosen as it says."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from clipkit.data.datamodule import PairData
from clipkit.data.sources.synthetic import synthetic
from clipkit.evaluation import Classify, Part, WiseFT, evaluate
from clipkit.evaluation.wise_ft import _metrics
from clipkit.models.folder import load_model
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.model import Model
from conftest import Command


def data_for(model: Model, count: int = 60) -> PairData:
    data = PairData(
        synthetic(count), preprocess=model.encoder.preprocess, tokenize=model.encoder.tokenize,
        templates=("a drawing of a {}",), workers=0,
    )  # fmt: skip
    data.find_broken()
    return data


@pytest.fixture
def model(tiny_run: Path) -> Model:
    """The tiny run, with a classifier that has seen the test pictures: so that its answers differ from chance."""
    model = load_model(tiny_run)
    data = data_for(model)
    records = data.split("test")
    embeds = model.encode_image(data.pixels(records.image_ids))
    labels = torch.from_numpy(records.labels)
    means = torch.stack([embeds[labels == label].mean(0) for label in range(len(records.class_names))])
    scale = model.encoder.logit_scale.exp()
    model.classifier = ZeroShotClassifier(
        normalize(means - embeds.mean(0), dim=1), class_names=records.class_names, logit_scale=scale
    )
    return model


@pytest.fixture
def start(tiny_run: Path) -> Model:
    """Some way off, and without a classifier of its own."""
    start = load_model(tiny_run)
    generator = torch.Generator().manual_seed(0)
    for parameter in start.encoder.parameters():
        parameter.data.add_(0.3 * parameter.data.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return start


def top1(model: Model, data: PairData) -> float:
    return evaluate(model, data, [Classify()], split="test").metrics["test/top1"]


def test_the_ends_score_as_the_two_models_do(model: Model, start: Model) -> None:
    data, other = data_for(model), data_for(model, 90)
    result = evaluate(model, data, [WiseFT(start, retention=(other, other.split("test")))], split="test")
    metrics, table = result.metrics, result.tables["test-wise_ft-curve"]
    assert metrics["test/wise_ft/top1@0"] == top1(start, data)
    assert metrics["test/wise_ft/top1@1"] == top1(model, data)
    assert metrics["test/wise_ft/top1@1"] > metrics["test/wise_ft/top1@0"]
    assert metrics["test/wise_ft/retention@0"] == top1(start, other)
    model.classifier = None  # what is retained is asked zero-shot
    assert metrics["test/wise_ft/retention@1"] == top1(model, other)
    np.testing.assert_allclose(table["alpha"], np.linspace(0, 1, 11))
    assert metrics["test/wise_ft/top1_best"] == table["top1"].max()
    assert "test-wise_ft-curve" in result.figures


def test_a_frozen_image_tower_is_run_once(model: Model, tiny_run: Path) -> None:
    """Only the projections differ: the same numbers as with features computed for each α."""
    start = load_model(tiny_run)
    for parameter in start.encoder.image_projection.parameters():
        parameter.data.mul_(-1)
    data = data_for(model)
    part = Part(model, data, data.split("test"), lambda what, done, total: None)
    seen: list[int] = []
    pixels = data.pixels
    data.pixels = lambda ids: (seen.append(len(ids)), pixels(ids))[1]  # type: ignore[method-assign]  # counted
    metrics = WiseFT(start).run(part).metrics
    assert sum(seen) == len(part.records)
    assert metrics["top1@0"] == top1(start, data)
    assert metrics["top1@1"] == top1(model, data)
    assert metrics["top1@1"] > metrics["top1@0"]
    assert "retention@0" not in metrics


def test_of_equal_bests_the_one_that_retains_most_counts() -> None:
    table = pd.DataFrame({"alpha": [i / 10 for i in range(11)], "top1": [0.5, *[0.7] * 5, *[0.6] * 5],
                          "retention": [0.9, 0.6, 0.8, 0.8, 0.7, 0.5, *[0.4] * 5]})  # fmt: skip
    metrics = _metrics(table)
    assert metrics["best_alpha"] == 0.2
    assert (metrics["top1_best"], metrics["retention_best"]) == (0.7, 0.8)
    assert (metrics["top1@0"], metrics["top1@0.5"], metrics["top1@1"]) == (0.5, 0.7, 0.6)


def test_the_command_uses_the_recorded_start_and_leaves_the_model_alone(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("train", "backbone=checkpoint", f"backbone.path={tiny_run}/model", "data=synthetic",
                   "data.num_images=80", "trainer=cpu", "debug=fast", "name=next", "report=false",
                   "evaluators=[]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = clipkit.folder / "outputs/train/next/model"
    assert json.loads((folder / "model.json").read_text())["start"] == str((tiny_run / "model").resolve())
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    done = clipkit("evaluate", "model=outputs/train/next", "data=synthetic", "data.num_images=80",
                   "evaluators=[wise_ft,classify]", "retention_data=synthetic", "retention_data.num_images=60",
                   "name=between")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    run = clipkit.folder / "outputs/evaluate/between"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/wise_ft/top1@1"] == metrics["test/top1"]
    assert "test/wise_ft/retention@0.5" in metrics
    assert len(pd.read_csv(run / "tables/test-wise_ft-curve.csv")) == 11
    assert (run / "plots/test-wise_ft-curve.png").is_file()
    assert "retention on" in done.stdout
    config = (run / "config.yaml").read_text()
    assert "num_images: 60" in config  # its own, not those of data

    elsewhere = clipkit("evaluate", "model=outputs/train/next", "data=synthetic", "evaluators=[wise_ft]",
                        "base=emoji_clip", "name=other")  # fmt: skip
    assert elsewhere.returncode == 2
    assert "different architectures" in elsewhere.stderr
    assert "Traceback" not in elsewhere.stderr


def test_a_run_from_scratch_has_no_start(clipkit: Command, tiny_run: Path) -> None:
    assert load_model(tiny_run).start is None
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "evaluators=[wise_ft]", "name=x")
    assert done.returncode == 2
    assert "give base=" in done.stderr
    assert "Traceback" not in done.stderr
