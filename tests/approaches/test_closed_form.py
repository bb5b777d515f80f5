"""Approaches without stages: what they fit, what they choose on validation, what a run of them leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_pictures import COLOURS, features_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.approaches.base import Approach
from clipkit.approaches.gda import GDA
from clipkit.approaches.linear_probe import LinearProbe
from clipkit.approaches.lp_plus_plus import LPPlusPlus
from clipkit.approaches.stored import stored, text_start
from clipkit.approaches.tip_adapter import TipAdapter
from clipkit.errors import UserError
from clipkit.features.frozen import FrozenFeatures
from clipkit.solvers.gda import fit_gda, text_prior
from conftest import Command

SLOW = pytest.mark.slow
CLOSED = (LinearProbe, TipAdapter, LPPlusPlus, GDA)


def finished(kind: type[Approach], features: FrozenFeatures, **options: Any) -> Any:
    approach = kind(features.encoder, stages={}, **options)
    approach.finish(features)
    return approach


def logits(approach: Approach, features: FrozenFeatures, split: str) -> tuple[Tensor, Tensor]:
    """Of the classifier that the approach leaves for use, with the labels."""
    head: Any = approach.model(("{}",)).classifier
    part = stored(features, split)
    with torch.no_grad():
        return head(getattr(part, head.eats)[0]), part.labels


@pytest.mark.parametrize("kind", CLOSED)
def test_each_learns_to_tell_pictures_that_it_has_not_seen(tmp_path: Path, kind: type[Approach]) -> None:
    """An untrained tower tells colours well enough; its texts say nothing."""
    features = features_of(tmp_path, val=6, test=9)
    approach = finished(kind, features)
    answers, labels = logits(approach, features, "test")
    assert (answers.argmax(1) == labels).all()
    assert approach.model(("{}",)).classifier.class_names == COLOURS


@pytest.mark.parametrize("kind", CLOSED)
def test_nothing_of_the_test_split_is_looked_at(tmp_path: Path, kind: type[Approach]) -> None:
    """The classifier is the same, to the bit, whether there are test pictures or not."""
    without, without_test = features_of(tmp_path / "a", val=6), features_of(tmp_path / "b", val=6, test=9)
    states = [finished(kind, features).head.state_dict() for features in (without, without_test)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", CLOSED)
def test_without_validation_pictures_each_has_an_answer(tmp_path: Path, kind: type[Approach]) -> None:
    features = features_of(tmp_path)
    answers, labels = logits(finished(kind, features), features, "train")
    assert (answers.argmax(1) == labels).all()


@pytest.mark.parametrize("kind", CLOSED)
def test_a_class_without_a_training_picture_breaks_nothing(tmp_path: Path, kind: type[Approach]) -> None:
    features = features_of(tmp_path, unlabelled=("2", "5", "8", "11"))  # all of the third class
    answers, _ = logits(finished(kind, features), features, "train")
    assert answers.shape[1] == 3
    assert torch.isfinite(answers).all()


@pytest.mark.parametrize("kind", CLOSED)
def test_one_class_is_refused_by_each(tmp_path: Path, kind: type[Approach]) -> None:
    with pytest.raises(UserError, match="fewer than two classes"):
        finished(kind, features_of(tmp_path, class_names=("only",)))


@pytest.mark.parametrize("eats", ["features", "embeds", "both"])
def test_the_probe_is_scikit_learns(tmp_path: Path, eats: str) -> None:
    features = features_of(tmp_path)
    part = stored(features, "train")
    x, y = getattr(part, eats)[0].double().numpy(), part.labels.numpy()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.8, class_weight="balanced", tol=1e-8)).fit(x, y)
    answers, _ = logits(finished(LinearProbe, features, eats=eats, C=0.8, balanced=True), features, "train")
    np.testing.assert_allclose(answers.softmax(1).numpy(), pipeline.predict_proba(x), atol=1e-3)


def test_a_probe_from_text_with_a_strong_penalty_is_zero_shot(tmp_path: Path) -> None:
    features = features_of(tmp_path)
    text = text_start(features)
    answers, _ = logits(finished(LinearProbe, features, eats="embeds", init="text", C=1e-9), features, "train")
    expected = text.logit_scale * stored(features, "train").embeds[0] @ text.embeds.T
    shift = (answers - expected).mean(0)  # biases are free
    torch.testing.assert_close(answers - shift, expected, atol=1e-3, rtol=0)


def test_a_probe_from_text_learns(tmp_path: Path) -> None:
    features = features_of(tmp_path, val=6, test=9)
    answers, labels = logits(finished(LinearProbe, features, eats="embeds", init="text"), features, "test")
    assert (answers.argmax(1) == labels).all()


def test_keys_are_the_directions_of_the_views_means(tmp_path: Path) -> None:
    features = features_of(tmp_path, augmentation="affine_color")
    approach = finished(TipAdapter, features, views=4)
    views = torch.stack([stored(features, "train", 4).embeds[v] for v in range(4)])
    torch.testing.assert_close(approach.head.keys.detach(), normalize(views.sum(0), dim=-1), atol=1e-6, rtol=0)


def test_without_validation_pictures_the_memory_counts_as_in_the_paper(tmp_path: Path) -> None:
    approach = finished(TipAdapter, features_of(tmp_path))
    assert approach.chosen == {"alpha": 1.0, "beta": 5.5}
    scale = approach.encoder.logit_scale.exp().item()
    assert approach.head.alpha.item() == pytest.approx(scale / 100)  # α is relative to 100 times the cosines
    assert approach.head.logit_scale.item() == pytest.approx(scale)


def test_given_blends_are_taken(tmp_path: Path) -> None:
    approach = finished(TipAdapter, features_of(tmp_path, val=6), alpha=0.5, beta=3)
    assert approach.chosen == {"alpha": 0.5, "beta": 3.0}
    assert approach.head.beta.item() == 3


def test_lp_plus_plus_begins_in_the_unit_of_the_encoders_own_scale(tmp_path: Path) -> None:
    """α = 250 · scale / 100 · mean cosine, before the first step."""
    features = features_of(tmp_path)
    approach = finished(LPPlusPlus, features, iterations=0)
    part, text = stored(features, "train"), text_start(features)
    sums = torch.stack([part.embeds[0][part.labels == k].sum(0) for k in range(3)])
    cosine = (sums * text.embeds).sum() / len(part)  # four pictures a class
    expected = sums + 2.5 * text.logit_scale * cosine * text.embeds
    torch.testing.assert_close(approach.head.weight.detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["prior", "logits", "none"])
@pytest.mark.parametrize("eats", ["both", "embeds"])
def test_gda_learns_whatever_names_are_for(tmp_path: Path, text: str, eats: str) -> None:
    features = features_of(tmp_path, val=6, test=9, augmentation="affine_color")
    answers, labels = logits(finished(GDA, features, text=text, eats=eats, views=3), features, "test")
    assert (answers.argmax(1) == labels).all()


def test_gda_with_names_alone_is_nearest_to_where_the_names_say(tmp_path: Path) -> None:
    """Heavy enough, the names decide: with distances as they were fitted, to the centre moved along the texts."""
    features = features_of(tmp_path)
    approach = finished(GDA, features, eats="embeds", text_shots=1e9)
    part, text = stored(features, "train"), text_start(features)
    expected = text_prior(part.embeds[0], part.labels, text.embeds)
    weights, bias = fit_gda(part.embeds[0], part.labels, num_classes=3, prior=expected, prior_count=1e9)
    answers, _ = logits(approach, features, "train")
    torch.testing.assert_close(answers, part.embeds[0] @ weights.T + bias, atol=1e-2, rtol=1e-3)


def test_gda_as_published_adds_to_zero_shot(tmp_path: Path) -> None:
    features = features_of(tmp_path)
    text, part = text_start(features), stored(features, "train")
    none, _ = logits(finished(GDA, features, eats="embeds", text="none"), features, "train")
    both, _ = logits(finished(GDA, features, eats="embeds", text="logits", alpha=0.3), features, "train")
    zero_shot = text.logit_scale * part.embeds[0] @ text.embeds.T
    torch.testing.assert_close(both, zero_shot + 0.3 * text.logit_scale / 100 * none, atol=1e-3, rtol=1e-4)


def test_validation_makes_the_probabilities_as_sure_as_they_are_right(tmp_path: Path) -> None:
    """The factor moves no answer: only how sure it is."""
    alone, judged = features_of(tmp_path / "a"), features_of(tmp_path / "b", val=6)
    plain, scaled = (finished(GDA, features, text="none") for features in (alone, judged))
    factor = scaled.chosen["scale"]
    assert plain.chosen["scale"] == 1
    assert factor != 1
    torch.testing.assert_close(scaled.head.weight, factor * plain.head.weight)


@pytest.mark.parametrize("kind", [LinearProbe, TipAdapter, LPPlusPlus, GDA])
def test_class_names_that_read_alike_are_said(tmp_path: Path, kind: type[Approach]) -> None:
    """Names that differ only beyond what the text tower reads."""
    features = features_of(tmp_path, class_names=("red" * 60, "green", "red" * 70))
    options: dict[str, Any] = {"eats": "embeds", "init": "text"} if kind is LinearProbe else {}
    (note,) = kind(features.encoder, stages={}, **options).notes(features.data)
    assert f"{'red' * 60!r} = {'red' * 70!r}" in note


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (LinearProbe, {"C": 0.0}, "approach.C=0.0"),
        (LinearProbe, {"C": -1}, "approach.C=-1"),
        (LinearProbe, {"init": "text"}, "approach.eats=embeds"),
        (TipAdapter, {"views": 0}, "approach.views=0"),
        (TipAdapter, {"views": 1.5}, "approach.views=1.5"),
        (TipAdapter, {"alpha": -1.0}, "approach.alpha=-1.0"),
        (GDA, {"views": 0}, "approach.views=0"),
        (GDA, {"text": "maybe"}, "approach.text=maybe"),
        (GDA, {"text_shots": -1.0}, "approach.text_shots=-1"),
        (GDA, {"alpha": -1.0}, "approach.alpha=-1"),
        (LPPlusPlus, {"iterations": -1}, "approach.iterations=-1"),
        (LPPlusPlus, {"iterations": "auto"}, "approach.iterations=auto"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    tmp_path: Path, kind: type[Approach], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        kind(features_of(tmp_path).encoder, stages={}, **options)


def test_a_probe_on_embeddings_refuses_towers_that_never_met(tmp_path: Path) -> None:
    encoder = features_of(tmp_path).encoder
    encoder.aligned = False
    with pytest.raises(UserError, match="never trained together"):
        LinearProbe(encoder, stages={}, eats="embeds")
    with pytest.raises(UserError, match="never trained together"):
        GDA(encoder, stages={})


@pytest.mark.parametrize(
    "approach",
    [
        "gda",
        pytest.param("tip_adapter", marks=SLOW),
        pytest.param("linear_probe", marks=SLOW),
        pytest.param("lp_plus_plus", marks=SLOW),
    ],
)
def test_a_run_leaves_a_model_that_answers_with_what_was_fitted(clipkit: Command, approach: str) -> None:
    data = ("data=synthetic", "data.num_images=90", "data.shots=3", "report=false")
    done = clipkit("train", f"approach={approach}", *data, "trainer=cpu", "name=run")
    assert done.returncode == 0, done.stdout + done.stderr
    run = clipkit.folder / "outputs" / "train" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/top1"] > 1 / 6
    again = clipkit("evaluate", f"model={run / 'model'}", *data, "name=again")
    assert again.returncode == 0, again.stdout + again.stderr
    found = json.loads((clipkit.folder / "outputs" / "evaluate" / "again" / "metrics.json").read_text())
    assert found["test/top1"] == pytest.approx(metrics["test/top1"])
