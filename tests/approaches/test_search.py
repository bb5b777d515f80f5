"""Searching for a head: what may be asked, who wins, and what a run of it leaves."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from labelled_pictures import features_of

from clipkit.approaches.aamp_mlp import AampMlp
from clipkit.approaches.base import Stage
from clipkit.approaches.cosine_text_init import CosineTextInit
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.approaches.search import Search
from clipkit.approaches.together import Outcome
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.freezing import Trained
from clipkit.models.heads.angular import AngularMLP
from conftest import Command

FROZEN = Trained(projections=False, logit_scale=False)
STAGE = Stage(4, FROZEN, 5, Optimizer(partial(torch.optim.Adam, eps=1e-6), lr=3e-3), Constant(), views=2)
NUMBERS = AngularMLP.numbers


def searched(features: FrozenFeatures, search: Any, *, stage: Stage = STAGE, **options: Any) -> AampMlp:
    approach = AampMlp(features.encoder, stages={"head": stage}, search=search, **options)
    approach.notes(features.data)
    approach.prepare(features)
    return approach


def test_settings_are_all_combinations_the_last_key_changing_first() -> None:
    search = Search.read({"lr": [1e-3, 1e-4], "seeds": 2, "margin": [0, 0.5]}, numbers=NUMBERS)
    assert search.settings == (
        {"lr": 1e-3, "margin": 0.0},
        {"lr": 1e-3, "margin": 0.5},
        {"lr": 1e-4, "margin": 0.0},
        {"lr": 1e-4, "margin": 0.5},
    )
    assert len(search) == 8
    assert [seed for seed, _ in search.heads(7)] == [7, 8] * 4


def test_what_is_not_named_is_the_stages() -> None:
    optimizer = Optimizer(torch.optim.Adam, lr=1.0, weight_decay=0.5, group_lr={"heads": 2.0, "image": 9.0})
    (recipe,) = Search.read({"weight_decay": 0.25}).recipes(3, optimizer)
    assert (recipe.seed, recipe.lr, recipe.weight_decay) == (3, 2.0, 0.25)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"margn": [0.1]}, "no margn here; did you mean margin.*choose from lr, weight_decay, margin, scale, seeds"),
        ({"hidden": [64]}, "no hidden here"),
        ({"seeds": 0}, "seeds=0: how many"),
        ({"seeds": [1, 2]}, "how many is expected"),
        ({"lr": []}, r"lr=\[\]: numbers are expected"),
        ({"lr": [1e-3, 0]}, r"lr=\[0.001, 0\]: numbers are expected, greater than 0"),
        ({"weight_decay": -1}, "weight_decay.*0 or greater"),
        ({"margin": ["wide"]}, r"margin=\[wide\]: numbers"),
        ({"scale": [float("nan")]}, "scale.*numbers"),
    ],
)
def test_a_mistake_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Search.read(asked, numbers=NUMBERS)


def outcomes(*losses: float | None) -> list[Outcome]:
    return [Outcome(1, {} if loss is None else {"val/loss": loss, "val/top1": loss}) for loss in losses]


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("val/loss", (1.0, 5.0, 2.9, 2.9, 4.0, 4.0), 1),  # the mean, not the luckiest seed
        ("val/top1", (0.9, 0.1, 0.4, 0.5, 0.6, 0.6), 2),
        ("val/loss", (2.0, 4.0, 3.0, 3.0, 3.0, 3.0), 0),  # the first of equals
        ("val/loss", (1.0, None, 3.0, 3.0, 4.0, 4.0), 1),  # a seed that diverged counts
        ("val/top1", (1.0, float("nan"), 0.3, 0.3, 0.2, 0.3), 1),
    ],
)
def test_the_best_mean_over_seeds_wins(monitor: str, values: tuple[float | None, ...], best: int) -> None:
    search = Search.read({"lr": [1, 2, 3], "seeds": 2})
    found, table = search.decide(outcomes(*values), monitor=monitor, seed=5)
    assert found == best
    assert table["seed"].tolist() == [5, 6] * 3
    assert table.loc[table["chosen"], "lr"].unique().tolist() == [best + 1]


def test_if_all_diverge_there_is_nothing_to_choose() -> None:
    with pytest.raises(UserError, match="smaller lr"):
        Search.read({"lr": [1, 2], "seeds": 2}).decide(outcomes(None, 1.0, 1.0, None), monitor="val/loss", seed=0)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ({"train": Trained(image_groups=1, projections=False)}, {}, "frozen image tower"),
        ({"train": Trained()}, {}, "train.projections=false"),
        ({"views": "fresh"}, {}, "stored views"),
        ({"patience": 3}, {}, "patience=null"),
        ({"accumulate": 2}, {}, "accumulate=1"),
        ({"epochs": 0}, {}, "0 have epochs"),
        ({}, {"ema": 0.9}, "approach.ema=null"),
        ({}, {"monitor": "val/recall"}, "chooses by val/loss, val/top1"),
        ({}, {"search": 5}, "a mapping is expected"),
        ({}, {"search": {"margin": [0.1, 2.0]}}, "approach.margin=2: an angle in radians"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_read(
    tmp_path: Path, stage: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    encoder = features_of(tmp_path).encoder
    whole = Stage(**{**vars(STAGE), **stage})
    with pytest.raises(UserError, match=message):
        AampMlp(encoder, stages={"head": whole}, **{"search": {"seeds": 2}, **options})


def test_without_validation_pictures_nothing_can_choose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validation pictures choose, and painted has none"):
        searched(features_of(tmp_path), {"seeds": 2})


def test_the_runs_head_is_the_first_seed_of_the_chosen_setting(tmp_path: Path) -> None:
    """Its numbers and weights are those of a search that knows no other setting; nothing is left to the stages."""
    features = features_of(tmp_path, val=6, augmentation="affine_color")
    whole = searched(features, {"margin": [0.3, 0.0], "lr": [1e-4, 3e-2], "seeds": 2})
    table = whole.tables["search"]
    assert len(table) == 8
    means = table.groupby(["margin", "lr"])["val/loss"].mean()
    assert (whole.chosen["margin"], whole.chosen["lr"]) == means.idxmin()
    assert not table["chosen"].iloc[0]
    assert table["epoch"].between(1, 4).all()
    assert [stage.epochs for stage in whole.stages.values()] == [0]
    alone = searched(features, {"lr": whole.chosen["lr"]}, margin=whole.chosen["margin"])
    assert whole.head.spec() == alone.head.spec()
    assert whole.margin == whole.head.spec()["margin"] == whole.chosen["margin"]
    for name, value in whole.head.state_dict().items():
        torch.testing.assert_close(value, alone.head.state_dict()[name], atol=1e-5, rtol=1e-4)
    again = searched(features, {"margin": [0.3, 0.0], "lr": [1e-4, 3e-2], "seeds": 2})
    pd.testing.assert_frame_equal(again.tables["search"], table)
    assert all(torch.equal(v, again.head.state_dict()[n]) for n, v in whole.head.state_dict().items())


def test_nothing_of_the_test_split_is_looked_at(tmp_path: Path) -> None:
    search = {"lr": [1e-4, 3e-2], "seeds": 2}
    tables = [searched(features_of(tmp_path / str(test), val=6, test=test), search).tables["search"] for test in (0, 9)]
    pd.testing.assert_frame_equal(*tables)


def test_pictures_without_a_class_take_no_part(tmp_path: Path) -> None:
    approach = searched(features_of(tmp_path, val=6, unlabelled=["3", "12"]), {"lr": 3e-2})
    assert approach.tables["search"]["val/top1"].iloc[0] in [k / 5 for k in range(6)]


def test_least_steps_lengthen_a_search_too(tmp_path: Path) -> None:
    longer = Stage(**{**vars(STAGE), "least_steps": 30, "keep": "last"})
    approach = searched(features_of(tmp_path, val=6), {"seeds": 2}, stage=longer)
    assert approach.tables["search"]["epoch"].tolist() == [10, 10]  # 12 pictures, 3 batches an epoch


def test_prototypes_trust_their_texts_in_a_search_too(tmp_path: Path) -> None:
    features = features_of(tmp_path, val=6)
    approach = CosineTextInit(features.encoder, stages={"head": STAGE}, search={"lr": [1e-3, 1e-1]})
    approach.prepare(features)
    assert (approach.head.pull > 0).all()


def test_a_run_says_what_it_searched_and_leaves_the_head(clipkit: Command, tiny_run: Path) -> None:
    """On the command line, with a mistake first; tables, `run.json` and the model folder hold the choice."""
    command = (
        "approach=aamp_mlp",
        "backbone=checkpoint",
        f"backbone.path={tiny_run / 'model'}",
        *("data=synthetic", "data.num_images=160", "trainer=cpu", "trainer.threads=1", "debug_epochs=2", "name=one"),
    )
    wrong = clipkit("train", *command, "approach.search={lr: [1e-3], mrgin: [0.1]}")
    assert wrong.returncode == 2
    assert "did you mean margin" in wrong.stderr + wrong.stdout
    done = clipkit("train", *command, "approach.search={lr: [1e-5, 1e-2], margin: [0.1, 0.4], seeds: 2}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 heads (settings: 4, seeds: 2) are trained together" in " ".join(done.stdout.split())
    folder = clipkit.folder / "outputs" / "train" / "one"
    table = pd.read_csv(folder / "tables" / "search.csv")
    best = table.groupby(["lr", "margin"])["val/loss"].mean().idxmin()
    chosen = json.loads((folder / "run.json").read_text())["chosen"]
    head = json.loads((folder / "model" / "model.json").read_text())["classifier"]
    assert (chosen["lr"], chosen["margin"]) == best
    assert head["margin"] == chosen["margin"]
    assert not (folder / "checkpoints").exists()
