"""The line between two models: both ends to the bit, float64 in between, and a classifier that goes along."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from tiny_towers import random_pictures, randomized, tiny_encoder
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.heads.base import Head
from clipkit.models.interpolation import Interpolation
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection

CLASSES = ("cat", "dog", "wolf")
SENTENCES = ("a picture of a {}", "{}, drawn")


class Residual(Head):
    """Zero-shot logits and a small network that adds to them, as heads that start from text are made."""

    def __init__(self, class_names: Sequence[str], embed_dim: int = 32) -> None:
        super().__init__(class_names)
        self.hidden, self.output = nn.Linear(embed_dim, 8), nn.Linear(8, len(self.class_names))
        self.register_buffer("text", torch.zeros(len(self.class_names), embed_dim))
        self.register_buffer("logit_scale", torch.ones(()))

    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        self.text.copy_(prototypes)
        self.logit_scale.fill_(logit_scale)
        self.output.weight.zero_()
        self.output.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.output(self.hidden(x).relu())
        return self.logit_scale * x @ self.text.T + added


class Probe(Head):
    """A head that knows no text."""

    def __init__(self, class_names: Sequence[str], embed_dim: int = 32) -> None:
        super().__init__(class_names)
        self.linear = nn.Linear(embed_dim, len(self.class_names))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        return logits


class FeatureProbe(Probe):
    """A head that reads what stands before the projection."""

    eats = "features"

    def start_from_text(self, prototypes: Tensor, *, logit_scale: float) -> None:
        raise ValueError("features cannot be compared with texts")


def start() -> Model:
    return Model(tiny_encoder(), None, SENTENCES)


def end(classifier: nn.Module | None = None) -> Model:
    """Another state of the same towers; the text embeddings' table stays as it was, as what is frozen does."""
    encoder = tiny_encoder()
    table = encoder.text.model.embeddings.word_embeddings.weight.detach().clone()
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    randomized(encoder)
    encoder.text.model.embeddings.word_embeddings.weight.data.copy_(table)
    return Model(encoder, classifier, SENTENCES)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_both_ends_are_the_models_themselves() -> None:
    first, last = start(), end()
    pictures, texts = random_pictures(32), ["a cat", "dogs"]
    expected = [(m.encode_image(pictures), m.encode_text(texts), state(m.encoder)) for m in (first, last)]
    assert not torch.equal(expected[0][0], expected[1][0])
    between = Interpolation(first, last)
    for alpha, (image, text, weights) in enumerate(expected):
        with between.at(alpha) as model:
            assert torch.equal(model.encode_image(pictures), image)
            assert torch.equal(model.encode_text(texts), text)
            assert same(state(model.encoder), weights)


def test_both_models_stay_as_they_were_also_after_a_failure() -> None:
    torch.manual_seed(3)
    first, last = start(), end(Residual(CLASSES))
    before = state(first.encoder), state(last.encoder), state(last.classifier)
    between = Interpolation(first, last)

    def stopped() -> None:
        with between.at(0.3):
            assert not same(state(last.encoder), before[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert same(state(first.encoder), before[0])
    assert same(state(last.encoder), before[1])
    assert same(state(last.classifier), before[2])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_each_weight_in_between_is_the_formula_in_float64(alpha: float) -> None:
    first, last = start(), end()
    begin, finish = state(first.encoder), state(last.encoder)
    with Interpolation(first, last).at(alpha) as model:
        found = state(model.encoder)
    changed = 0
    for name, value in found.items():
        if value.is_floating_point():
            expected = (1 - alpha) * begin[name].double() + alpha * finish[name].double()
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
            changed += not torch.equal(value, begin[name])
    assert changed > 50
    assert any(name.endswith("running_var") for name in found)
    table = "text.model.embeddings.word_embeddings.weight"
    assert torch.equal(found[table], begin[table])  # equal at both ends, to the bit in between


def test_zero_shot_prototypes_go_from_the_starts_to_the_runs() -> None:
    first, last = start(), end()
    last.classifier = last.zero_shot(CLASSES)
    ends = state(first.zero_shot(CLASSES, templates=SENTENCES)), state(last.classifier)
    between = Interpolation(first, last)
    for alpha in (0, 1):
        with between.at(alpha) as model:
            assert same(state(model.classifier), ends[alpha])
    with between.at(0.5) as model:
        middle = state(model.classifier)["prototypes"]
    torch.testing.assert_close(middle, (ends[0]["prototypes"] + ends[1]["prototypes"]) / 2)


def test_a_head_that_starts_from_text_answers_at_the_start_as_the_start_does() -> None:
    torch.manual_seed(3)
    first, last = start(), end(Residual(CLASSES))
    kept, pictures = state(last.classifier), random_pictures(32)
    expected = first.classify(pictures, CLASSES), last.classify(pictures)
    between = Interpolation(first, last)
    for alpha in (0, 1):
        with between.at(alpha) as model:
            assert torch.equal(model.classify(pictures), expected[alpha])
    with between.at(0.5) as model:
        halved = state(model.classifier)
    torch.testing.assert_close(halved["output.weight"], kept["output.weight"] / 2)
    assert torch.equal(halved["hidden.weight"], kept["hidden.weight"])


@pytest.mark.parametrize("kind", [Probe, FeatureProbe])
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_a_head_without_a_start_is_kept(alpha: float, kind: type[Probe]) -> None:
    last = end(kind(CLASSES))
    kept = state(last.classifier)
    with Interpolation(start(), last).at(alpha) as model:
        assert same(state(model.classifier), kept)


def test_an_image_tower_that_was_not_trained_is_known() -> None:
    first, last = start(), start()
    for parameter in last.encoder.image_projection.parameters():
        parameter.data.mul_(2)
    assert Interpolation(first, last).same_image_tower
    assert not Interpolation(first, end()).same_image_tower


def test_other_architectures_are_refused_by_the_first_weight_that_differs() -> None:
    narrow = Model(tiny_encoder(projection=partial(LinearProjection, embed_dim=16)))
    with pytest.raises(UserError, match=r"image_projection\S* is \(32, \d+\) in the start and \(16, \d+\) in the run"):
        Interpolation(start(), narrow)
    with pytest.raises(UserError, match="logit_bias is missing in the start"):
        Interpolation(start(), Model(tiny_encoder(logit_bias=-10.0)))
    with pytest.raises(UserError, match="in the start and missing in the run"):
        Interpolation(Model(tiny_encoder(logit_bias=-10.0)), start())
