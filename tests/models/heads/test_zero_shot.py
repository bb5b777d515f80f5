"""Zero-shot classifier: prototypes by hand."""

import math

import pytest
import torch

from clipkit.models.heads.zero_shot import ZeroShotClassifier


def test_a_prototype_is_the_direction_of_the_mean_of_the_unit_sentences() -> None:
    embeds = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]])  # lengths must not matter
    head = ZeroShotClassifier.from_embeds(embeds, class_names=("between", "left"), logit_scale=torch.tensor(10.0))
    half = math.sqrt(0.5)
    torch.testing.assert_close(head.prototypes, torch.tensor([[half, half], [-1.0, 0.0]]))


def test_logits_are_scaled_cosines() -> None:
    embeds = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    head = ZeroShotClassifier.from_embeds(embeds, class_names=("a", "b"), logit_scale=torch.tensor(20.0))
    logits = head(torch.tensor([[0.6, 0.8]]))
    assert logits[0].tolist() == pytest.approx([12.0, 16.0])


def test_a_classifier_has_no_gradient_and_nothing_to_train() -> None:
    embeds = torch.randn(3, 2, 4, requires_grad=True)
    scale = torch.nn.Parameter(torch.tensor(5.0))
    head = ZeroShotClassifier.from_embeds(embeds, class_names=("a", "b", "c"), logit_scale=scale)
    assert list(head.parameters()) == []
    assert not head(torch.eye(4)).requires_grad


def test_an_empty_classifier_filled_from_a_state_gives_the_same_logits() -> None:
    embeds = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    head = ZeroShotClassifier.from_embeds(embeds, class_names=("a", "b", "c"), logit_scale=torch.tensor(7.0))
    other = ZeroShotClassifier.empty(class_names=["a", "b", "c"], embed_dim=4)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(torch.eye(4)), head(torch.eye(4)))
    assert other.class_names == head.class_names
