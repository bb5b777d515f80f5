"""The linear head: folded scaling and the zero-shot start."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from clipkit.models.heads.linear import LinearHead
from clipkit.models.heads.zero_shot import ZeroShotClassifier

NAMES = ("cat", "dog, or wolf", "eel")


def test_folded_scaling_gives_the_answers_of_a_scikit_learn_pipeline() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x = torch.randn(60, 5, generator=generator) * torch.tensor([1, 30, 0.01, 5, 1]) + 7 * torch.randn(5)
    x[:, 0] += labels
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x.double().numpy(), labels.numpy())
    fitted, scaler = pipeline[-1], pipeline[0]
    head = LinearHead(NAMES, in_features=5, eats="features")
    head.fill(*map(torch.from_numpy, (fitted.coef_, fitted.intercept_)), mean=torch.from_numpy(scaler.mean_),
              std=torch.from_numpy(scaler.scale_))  # fmt: skip
    found = head(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, pipeline.predict_proba(x.double().numpy()), atol=1e-4)


def test_it_begins_as_the_zero_shot_classifier() -> None:
    prototypes, embeds = (normalize(torch.randn(rows, 8), dim=-1) for rows in (3, 6))
    zero_shot = ZeroShotClassifier(prototypes, class_names=NAMES, logit_scale=torch.tensor(31.0))
    head = LinearHead(NAMES, in_features=8)
    head.fill(torch.randn(3, 8), torch.randn(3))  # whatever it was before
    head.start_from_text(prototypes, logit_scale=31.0)
    torch.testing.assert_close(head(embeds), zero_shot(embeds))


def test_features_cannot_begin_as_zero_shot() -> None:
    head = LinearHead(NAMES, in_features=4, eats="features")
    with pytest.raises(ValueError, match="eats features"):
        head.start_from_text(torch.zeros(3, 4), logit_scale=1.0)
