"""What all trained heads promise: they begin as the zero-shot classifier, come back from a folder, and learn."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.folder import load_model, save_model
from clipkit.models.heads.angular import AngularMLP
from clipkit.models.heads.base import Head
from clipkit.models.heads.cosine import CosinePrototypes
from clipkit.models.heads.logits_mlp import LogitsMLP
from clipkit.models.heads.mlp import MLPHead
from clipkit.models.heads.zero_shot import ZeroShotClassifier
from clipkit.models.image import TimmImageTower
from clipkit.models.model import Model
from clipkit.models.projection import LinearProjection
from clipkit.models.text import TransformersTextTower

KINDS: tuple[type[Head], ...] = (AngularMLP, CosinePrototypes, LogitsMLP, MLPHead)
NAMES = ("a cat", "dog, or wolf", "猫", "bird", "fish")
WIDTH, SCALE = 12, 10.5


def unit_rows(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


LABELS, TEXT = torch.arange(40) % 5, unit_rows(5, 1)
PICTURES = normalize(unit_rows(5, 2)[LABELS] + 0.4 * unit_rows(40, 0), dim=1)  # around other directions


def made(kind: type[Head], *, text: bool = True, **options: float) -> Head:
    torch.manual_seed(3)
    head = kind(NAMES, WIDTH, **options)  # type: ignore[arg-type, call-arg]
    if text:
        head.start_from_text(TEXT, logit_scale=SCALE)
    elif isinstance(head, LogitsMLP):
        head.read_text(TEXT, logit_scale=SCALE)
    return head


def train(head: Head, steps: int, *, lr: float = 1e-3) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    head.train()
    for _ in range(steps):
        loss = cross_entropy(head.training_logits(PICTURES, LABELS), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()


def zero_shot(x: Tensor) -> Tensor:
    return ZeroShotClassifier(TEXT, class_names=NAMES, logit_scale=torch.tensor(SCALE))(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_head_started_from_text_answers_as_the_zero_shot_classifier(kind: type[Head], training: bool) -> None:
    """AngularMLP keeps the scale that its margin belongs to; all others have the very logits."""
    head = made(kind).train(training)
    expected = zero_shot(PICTURES) * (16 / SCALE if kind is AngularMLP else 1)
    torch.testing.assert_close(head(PICTURES), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(head(PICTURES).argsort(1), expected.argsort(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_a_trained_head_comes_back_from_a_model_folder(tmp_path: Path, kind: type[Head], text: bool) -> None:
    head = made(kind, text=text)
    train(head, 3)
    if isinstance(head, CosinePrototypes):
        head.trust_text(PICTURES, LABELS)
    save_model(Model(tiny_encoder(), head), tmp_path / "model")
    loaded = load_model(tmp_path / "model").classifier
    assert type(loaded) is kind
    assert loaded.class_names == NAMES
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(PICTURES), head(PICTURES))
        assert torch.equal(loaded.training_logits(PICTURES, LABELS), head.training_logits(PICTURES, LABELS))
    assert loaded.spec() == head.spec()
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in loaded.state_dict().items())


def tiny_encoder() -> DualEncoder:
    text = TransformersTextTower(
        config={
            "model_type": "bert",
            "vocab_size": 259,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "pad_token_id": 0,
        }
    )
    image = TimmImageTower("test_efficientnet", image_size=32)
    return DualEncoder(image, text, projection=lambda width: LinearProjection(width, WIDTH))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_a_head_learns_from_either_start_what_the_text_does_not_say(kind: type[Head], text: bool) -> None:
    assert (zero_shot(PICTURES).argmax(1) == LABELS).float().mean() < 0.5
    head = made(kind, text=text)
    train(head, 200, lr=3e-2)
    assert (head(PICTURES).argmax(1) == LABELS).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_training_the_head_leaves_what_came_from_text_alone(kind: type[Head]) -> None:
    head = made(kind)
    before = {name: value.clone() for name, value in head.named_buffers() if "num_batches" not in name}
    train(head, 3)
    kept = {name for name, value in before.items() if torch.equal(value, dict(head.named_buffers())[name])}
    assert kept >= before.keys() - {name for name in before if "running" in name}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_pictures_too(kind: type[Head]) -> None:
    """The last groups of the tower are trained through the head."""
    x = PICTURES.clone().requires_grad_()
    cross_entropy(made(kind).training_logits(x, LABELS), LABELS).backward()
    assert x.grad is not None
    assert x.grad.norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_costs_the_zero_shot_logits_nothing_but_the_rounding_of_the_pictures(kind: type[Head]) -> None:
    """Logits of 10 have an error of 0.03 in bfloat16."""
    rounded = PICTURES.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = made(kind).eval()(rounded)
    assert logits.dtype == torch.float32
    expected = made(kind).eval()(rounded.float())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_head(kind: type[Head]) -> None:
    first, second = made(kind, text=False).state_dict(), made(kind, text=False).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_alone_has_one_logit_and_no_loss(kind: type[Head]) -> None:
    head = kind(["only"], WIDTH)  # type: ignore[arg-type]
    head.start_from_text(TEXT[:1], logit_scale=SCALE)
    labels = torch.zeros(40, dtype=torch.long)
    assert cross_entropy(head.training_logits(PICTURES, labels), labels).item() == 0.0
