"""What a model says of pictures: the same for one picture as for many, and by whichever classifier was asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.discovery.watching import Watcher
from clipkit.errors import UserError
from clipkit.models.model import Model
from galleries import CLASSES, small_model

TEMPLATES = ("a picture of {}", "{} in the snow")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("model"), classifier=True)


def features(model: Model, count: int = 12) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return model.encoder.image_features(pixels)


def test_zero_shot_logits_are_scaled_cosines_with_the_class_texts(model: Model) -> None:
    watcher = Watcher.zero_shot(model, CLASSES, templates=TEMPLATES)
    seen = watcher.signals(features(model))
    np.testing.assert_allclose(np.linalg.norm(seen.embeds, axis=1), 1, atol=1e-5)
    scale = model.encoder.logit_scale.exp().item()
    np.testing.assert_allclose(seen.logits, scale * seen.cosines, rtol=1e-4)
    text = model.encode_text([t.format(CLASSES[1]) for t in TEMPLATES]).numpy()
    mean = text.mean(0) / np.linalg.norm(text.mean(0))
    np.testing.assert_allclose(seen.cosines[:, 1], seen.embeds @ mean, atol=1e-5)


def test_a_picture_is_seen_alike_alone_and_among_others(model: Model) -> None:
    watcher, all_of_them = Watcher.zero_shot(model, CLASSES, templates=TEMPLATES), features(model)
    whole, alone = watcher.signals(all_of_them), watcher.signals(all_of_them[5:6])
    np.testing.assert_allclose(alone.logits[0], whole.logits[5], rtol=1e-5)
    assert len(watcher.signals(all_of_them[:0])) == 0


def test_few_pictures_teach_what_names_do_not_say(model: Model) -> None:
    """Ten random clouds around three pictures: names of random towers say nothing, pictures do."""
    base = features(model, 3)
    labels = torch.arange(3).repeat(10)
    noise = torch.randn(30, base.shape[1], generator=torch.Generator().manual_seed(1))
    cloud = base[labels] + 0.05 * base.std() * noise
    watcher = Watcher.few_shot(model, CLASSES, cloud, labels, templates=TEMPLATES)
    assert (watcher.predicted(watcher.signals(cloud)) == labels.numpy()).all()


def test_the_models_own_classifier_must_know_these_classes(model: Model, tmp_path: Path) -> None:
    own = Watcher.own(model, CLASSES, templates=TEMPLATES)
    assert own.classifier is model.classifier
    some = Watcher.own(model, ("blue", "red"), templates=TEMPLATES)
    np.testing.assert_array_equal(
        some.signals(features(model)).logits, own.signals(features(model)).logits[:, [CLASSES.index("blue"), 0]]
    )
    with pytest.raises(UserError, match="does not know pink: take classifier=few_shot"):
        Watcher.own(model, ("red", "pink"), templates=TEMPLATES)
    with pytest.raises(UserError, match="this one has no classifier"):
        Watcher.own(small_model(tmp_path), CLASSES, templates=TEMPLATES)


def test_towers_that_never_met_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have not been trained together"):
        Watcher.zero_shot(small_model(tmp_path, aligned=False), CLASSES, templates=TEMPLATES)


def test_a_broken_model_is_named(model: Model) -> None:
    watcher, broken = Watcher.zero_shot(model, CLASSES, templates=TEMPLATES), features(model)
    broken[2, 3] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        watcher.signals(broken)
