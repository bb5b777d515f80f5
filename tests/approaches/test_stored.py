"""Labelled pictures from the store: the model's own embeddings, without those that have no label."""

from pathlib import Path

import pytest
import torch
from labelled_pictures import features_of
from torch.nn.functional import normalize

from clipkit.approaches.stored import stored, text_start
from clipkit.errors import UserError


def test_embeddings_and_features_are_those_of_the_pictures(tmp_path: Path) -> None:
    features = features_of(tmp_path, standardize=True)
    encoder, records = features.encoder, features.data.split("train")
    encoder.image.standardize.fit(torch.randn(50, encoder.feature_dim) * 2 + 1)
    encoder.train()
    found = stored(features, "train")
    assert encoder.training  # left as it was
    encoder.eval()
    with torch.no_grad():
        pixels = features.data.pixels(records.image_ids)
        torch.testing.assert_close(found.features[0], encoder.image_features(pixels), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.embeds[0], encoder.encode_image(pixels), atol=1e-5, rtol=1e-5)
    assert found.labels.tolist() == records.labels.tolist()


def test_pictures_without_a_label_are_left_out(tmp_path: Path) -> None:
    every = stored(features_of(tmp_path), "train")
    some = stored(features_of(tmp_path, unlabelled=("3", "8")), "train")
    kept = [row for row in range(len(every)) if row not in (3, 8)]
    assert len(some) == len(every) - 2
    assert some.labels.tolist() == every.labels[kept].tolist()
    torch.testing.assert_close(some.embeds, every.embeds[:, kept], atol=1e-6, rtol=0)


def test_views_begin_with_the_picture_itself(tmp_path: Path) -> None:
    features = features_of(tmp_path, augmentation="affine_color")
    one, three = stored(features, "train"), stored(features, "train", 3)
    assert three.embeds.shape == (3, *one.embeds.shape[1:])
    torch.testing.assert_close(three.embeds[0], one.embeds[0], atol=1e-6, rtol=0)
    assert (three.embeds[1] - three.embeds[2]).abs().max() > 1e-4


def test_a_split_without_pictures_is_empty(tmp_path: Path) -> None:
    found = stored(features_of(tmp_path), "val", 2)
    encoder = features_of(tmp_path).encoder
    assert found.embeds.shape == (2, 0, encoder.embed_dim)
    assert found.features.shape == (2, 0, encoder.feature_dim)
    assert len(found) == 0


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than two classes \(only\)"):
        stored(features_of(tmp_path, class_names=("only",)), "train")


def test_no_labelled_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training picture with a class"):
        stored(features_of(tmp_path, unlabelled=tuple(map(str, range(12)))), "train")


def test_texts_are_the_normalised_mean_of_the_templates_embeddings(tmp_path: Path) -> None:
    features = features_of(tmp_path)
    encoder, names = features.encoder, features.data.records.class_names
    encoder.train()
    found = text_start(features)
    assert encoder.training
    encoder.eval()
    for row, name in enumerate(names):
        sentences = [template.format(name) for template in features.data.templates]
        with torch.no_grad():
            expected = normalize(encoder.encode_text(encoder.tokenize(sentences)).mean(0), dim=-1)
        torch.testing.assert_close(found.embeds[row], expected, atol=1e-5, rtol=0)
    assert found.logit_scale == pytest.approx(encoder.logit_scale.exp().item())
