"""The linear probe as a question: scikit-learn's classifier, chosen and taught by pictures that are not asked about."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from placed_pictures import CLASSES, LookupModel, data_of, part_of, place, quarters
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from clipkit.evaluation import LinearProbe, evaluate
from clipkit.evaluation import linear_probe as module
from conftest import Command

COUNT = 480


def peer(C: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-6, max_iter=10_000))


def rows(*splits: str) -> np.ndarray:
    return np.flatnonzero(np.isin(quarters(COUNT), splits))


@pytest.mark.parametrize("eats", ["features", "embeds"])
def test_it_is_scikit_learns_classifier_of_training_and_validation_pictures(eats: str) -> None:
    table, labels = place(COUNT)
    model = LookupModel(table)
    probe = LinearProbe(eats=eats)  # type: ignore[arg-type]  # one of two words
    result = probe.run(part_of(data_of(labels, quarters(COUNT)), table))
    x = (table if eats == "features" else model.encoder.project_image(table)).double().numpy()
    y, train, val, test = labels.numpy(), rows("train"), rows("val"), rows("test")
    path = result.tables["c_path"]
    for C, accuracy, loss in path[["C", "accuracy", "loss"]].iloc[::3].itertuples(index=False):
        fitted = peer(C).fit(x[train], y[train])
        assert accuracy == pytest.approx(fitted.score(x[val], y[val]), abs=1.01 / len(val))  # one picture
        log_p = fitted.predict_log_proba(x[val])
        assert loss == pytest.approx(-log_p[np.arange(len(val)), y[val]].mean(), rel=1e-3)
    best = path.sort_values(["accuracy", "loss"], ascending=[False, True]).iloc[0]
    assert result.metrics["C"] == pytest.approx(best["C"])
    final = peer(best["C"]).fit(x[rows("train", "val")], y[rows("train", "val")])
    assert result.metrics["top1"] == pytest.approx(final.score(x[test], y[test]))
    assert 1 / 3 < result.metrics["top1"] < 0.95
    assert set(np.log10(path["C"]).round(6)) >= {-3, -2, -1, 0, 1, 2, 3}


def state(probe: LinearProbe, labels: Tensor, table: Tensor, split: str = "test") -> dict[str, Tensor]:
    return probe.fitted(part_of(data_of(labels, quarters(COUNT)), table, split)).head.state_dict()


@pytest.mark.parametrize("split", ["test", "val"])
def test_labels_of_the_pictures_asked_about_change_nothing_in_the_classifier(split: str) -> None:
    """To the bit; and neither do those of test where validation is asked about."""
    table, labels = place(COUNT)
    changed = labels.clone()
    asked = torch.from_numpy(rows(split, "test"))
    changed[asked] = (labels[asked] + 1) % 6
    states = [state(LinearProbe(), y, table, split) for y in (labels, changed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    taught = labels.clone()
    first = torch.from_numpy(rows("train"))[0]
    taught[first] = (labels[first] + 1) % 6
    assert not torch.equal(state(LinearProbe(), taught, table, split)["weight"], states[0]["weight"])


def test_without_validation_pictures_whole_groups_choose_and_all_teach() -> None:
    table, labels = place(COUNT)
    splits = ["test" if split == "test" else "train" for split in quarters(COUNT)]
    groups = [str(row // 12) for row in range(COUNT)]
    data = data_of(labels, splits, groups=groups)
    train = data.split("train")
    out = module._every_fifth_group(train).numpy()
    assert len(out) / 6 < out.sum() < len(out) / 4
    assert not set(train.groups[out]) & set(train.groups[~out])
    result = LinearProbe().run(part_of(data, table))
    x, y = table.double().numpy(), labels.numpy()
    final = peer(result.metrics["C"]).fit(x[rows("train", "val")], y[rows("train", "val")])
    assert result.metrics["top1"] == pytest.approx(final.score(x[rows("test")], y[rows("test")]))


def test_features_that_say_nothing_give_chance() -> None:
    table, labels = torch.ones(COUNT, 16), place(COUNT)[1]
    metrics = LinearProbe().run(part_of(data_of(labels, quarters(COUNT)), table)).metrics
    assert metrics["top1"] <= 1 / 6


def test_a_split_in_subsets_is_fitted_once_and_each_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = place(COUNT)
    made, heads = [], module.LinearHeads
    monkeypatch.setattr(module, "LinearHeads", lambda *a, **k: (made.append(len(a[0])), heads(*a, **k))[1])
    subsets = ["seen" if label < 4 else "unseen" for label in labels]
    data = data_of(labels, quarters(COUNT), subsets=subsets)
    steps: list[tuple[str, int, int]] = []
    result = evaluate(
        LookupModel(table), data, [LinearProbe()], split="test",  # type: ignore[arg-type]  # a stand-in model
        on_progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert made == [len(rows("train")), len(rows("train", "val"))]
    found = result.metrics
    whole = LinearProbe().run(part_of(data_of(labels, quarters(COUNT)), table)).metrics["top1"]
    assert (2 * found["test/seen/linear_probe/top1"] + found["test/unseen/linear_probe/top1"]) / 3 == pytest.approx(
        whole
    )
    assert found["test/seen/linear_probe/C"] == found["test/unseen/linear_probe/C"]
    assert {"test-seen-linear_probe-c_path", "test-unseen-linear_probe-c_path"} <= result.tables.keys()
    assert list(result.figures) == ["test-seen-linear_probe-c_path"]
    told = [step for step in steps if step[0] == "linear probe"]
    assert [step[1] for step in told] == sorted(step[1] for step in told)
    assert told[-1][1] == told[-1][2]


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_pictures_are_not_asked_about(split: str) -> None:
    table, labels = place(COUNT)
    data = data_of(labels, quarters(COUNT))
    assert not evaluate(LookupModel(table), data, [LinearProbe()], split=split).metrics  # type: ignore[arg-type]  # a stand-in model


@pytest.mark.parametrize("lesson", ["no pictures", "no labels", "one class"])
def test_where_nothing_can_be_learned_nothing_is_asked(lesson: str) -> None:
    table, labels = place(COUNT)
    splits, train = quarters(COUNT), torch.from_numpy(rows("train"))
    if lesson == "no pictures":
        splits = ["val" if split == "train" else split for split in splits]
    else:
        labels[train] = -1 if lesson == "no labels" else 2
    data = data_of(labels, splits)
    assert not evaluate(LookupModel(table), data, [LinearProbe()], split="test").metrics  # type: ignore[arg-type]  # a stand-in model


def test_a_class_that_is_never_shown_is_never_the_answer() -> None:
    table, labels = place(COUNT)
    shown = torch.tensor([split == "test" for split in quarters(COUNT)]) | (labels != 5)
    given = [int(label) if keep else None for label, keep in zip(labels, shown, strict=True)]
    part = part_of(data_of(given, quarters(COUNT)), table)
    head = LinearProbe().fitted(part).head
    with torch.inference_mode():
        assert (head(part.image_features).argmax(1) != 5).all()
    assert LinearProbe().run(part).metrics["top1"] > 1 / 3


def test_validation_pictures_of_a_class_that_training_lacks_do_not_choose_but_teach() -> None:
    table, labels = place(COUNT)
    given = [None if label == 5 and split == "train" else int(label)
             for label, split in zip(labels, quarters(COUNT), strict=True)]  # fmt: skip
    part = part_of(data_of(given, quarters(COUNT)), table)
    result = LinearProbe().run(part)
    assert result.tables["c_path"]["loss"].max() < 100
    with torch.inference_mode():
        answers = LinearProbe().fitted(part).head(part.image_features).argmax(1)
    assert (answers == 5).any()


@pytest.mark.parametrize("count", [12, 18])
def test_a_few_pictures_do(count: int) -> None:
    """A class has one picture to learn from, or two; nobody chooses C where there are fewer than five groups."""
    table, labels = place(count + 6)
    splits = ["train"] * count + ["test"] * 6
    metrics = LinearProbe().run(part_of(data_of(labels, splits), table)).metrics
    assert all(math.isfinite(value) for value in metrics.values())
    few = data_of([0, 1, 0, 1], ["train", "train", "train", "test"], class_names=CLASSES[:2])
    result = LinearProbe().run(part_of(few, table))
    assert result.metrics["C"] == 1
    assert not result.tables


def test_the_command_asks_both_learners(clipkit: Command, tiny_run: Path) -> None:
    done = clipkit("evaluate", f"model={tiny_run}", "data=synthetic", "data.num_images=90",
                   "evaluators=[linear_probe,knn]", "name=learned")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = clipkit.folder / "outputs/evaluate/learned"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/linear_probe/top1", "test/linear_probe/C", "test/knn/top1", "test/knn/top5"} <= metrics.keys()
    assert (run / "tables/test-linear_probe-c_path.csv").read_text().startswith("C,accuracy,loss")
