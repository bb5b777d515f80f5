"""Several processes with a share of the batch each have the loss and the gradients of one process on all of it."""

from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_processes import in_processes
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from clipkit.approaches.contrastive import Contrastive
from clipkit.losses import (
    GroupTargets,
    PairTargets,
    SoftTargets,
    angular_contrastive_loss,
    contrastive_loss,
    gather_rows,
    sigmoid_loss,
    supervised_contrastive_loss,
)
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearProjection
from clipkit.models.text_transformer import CausalTextTower
from clipkit.ranks import process_group, rank, ranks

OWNER = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6])  # 7 pictures, 11 captions: those of a picture stay together
GROUPS = torch.tensor([4, 9, 9, 1, 4, 0, 9])  # groups reach over processes
SHARES = [(4, 3), (1, 6), (7, 0), (3, 0, 4), (2, 3, 2)]  # pictures of each process

Batch = dict[str, Tensor]
Found = dict[str, Tensor]


def share(batch: Batch, pictures: tuple[int, ...]) -> Batch:
    """This process's rows; the whole batch where there is one process."""
    if process_group() is None:
        return batch
    start = sum(pictures[: rank()])
    own = slice(start, start + pictures[rank()])
    texts = (batch["owner"] >= own.start) & (batch["owner"] < own.stop)
    mine = {name: batch[name][own] for name in ("image", "group")}
    return mine | {"text": batch["text"][texts], "owner": batch["owner"][texts] - own.start}


class Heads(nn.Module):
    """Two projections, a temperature and a bias: what a loss needs to have parameters behind it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image, self.text = (nn.Parameter(torch.randn(5, 4, generator=generator).double()) for _ in range(2))
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.tensor(x).double()) for x in (2.5, -3.0))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return normalize(batch["image"] @ self.image, dim=1), normalize(batch["text"] @ self.text, dim=1)


def features(captions: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    owner = OWNER if captions else torch.arange(7)
    image, text = (torch.randn(rows, 5, generator=generator).double() for rows in (7, len(owner)))
    return {"image": image, "text": text, "owner": owner, "group": GROUPS}


def a_loss(kind: str, chunk: int | None, heads: Heads, batch: Batch) -> Tensor:
    (image, text), scale, owner, group = heads.embed(batch), heads.logit_scale.exp(), batch["owner"], batch["group"]
    how: dict[str, Any] = {"logit_scale": scale, "chunk_size": chunk, "group": process_group()}
    by_pair = PairTargets() if kind.endswith("pairs") else PairTargets(owner)
    by_group = GroupTargets(group, group[owner])
    if kind.startswith("sigmoid"):
        targets = by_group if kind.endswith("groups") else by_pair
        return sigmoid_loss(image, text, logit_bias=heads.logit_bias, targets=targets, **how)
    if kind == "angular groups":
        return angular_contrastive_loss(
            image, text, logit_scale=scale, margin=0.5, targets=by_group, group=process_group()
        )
    if kind == "supervised":
        return supervised_contrastive_loss(
            gather_rows(image, process_group()), gather_rows(group, process_group()), logit_scale=scale
        )
    soft = SoftTargets(torch.tensor(5.0), owner if kind == "soft captions" else None)
    return contrastive_loss(
        image, text, targets=soft if kind.startswith("soft") else by_group if kind == "groups" else by_pair, **how
    )


KINDS = ["pairs", "captions", "groups", "soft", "soft captions", "sigmoid pairs", "sigmoid captions", "sigmoid groups"]
CASES = [*product(KINDS, [1, 2, 3, 20, None]), ("supervised", None), ("angular groups", None)]


def losses_and_gradients(pictures: tuple[int, ...]) -> dict[str, Found]:
    """Of every kind, with parameters' gradients averaged over the processes."""
    found = {}
    for kind, chunk in CASES:
        heads = Heads()
        loss = a_loss(kind, chunk, heads, share(features("pairs" not in kind and kind != "soft"), pictures))
        loss.backward()
        found[f"{kind} {chunk}"] = {"loss": loss.detach()}
        for name, parameter in heads.named_parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if process_group() is not None:
                dist.all_reduce(grad)
            found[f"{kind} {chunk}"][name] = grad / ranks()
    return found


@cache
def by_one_process() -> dict[str, Found]:
    return losses_and_gradients((7,))


@pytest.mark.parametrize("pictures", SHARES, ids=str)
def test_every_loss_and_gradient_is_the_joined_batchs(tmp_path: Path, pictures: tuple[int, ...]) -> None:
    everywhere = in_processes(len(pictures), partial(losses_and_gradients, pictures), tmp_path)
    for case, expected in by_one_process().items():
        for found in everywhere:
            assert torch.equal(found[case]["loss"], everywhere[0][case]["loss"]), case  # to the bit the same number
            for name, reference in expected.items():
                torch.testing.assert_close(found[case][name], reference, rtol=1e-10, atol=1e-12, msg=f"{case} {name}")


def unequal_pairs() -> str:
    image = torch.randn(2 + rank(), 4)
    try:
        contrastive_loss(image, image[:2], logit_scale=torch.tensor(1.0), group=process_group())
    except ValueError as error:
        return str(error)
    return ""


def test_pairs_that_do_not_match_on_one_process_are_refused_on_all(tmp_path: Path) -> None:
    said = in_processes(2, unequal_pairs, tmp_path)
    assert said == ["hard targets need as many texts as images, got 2, 3 and 2, 2"] * 2


class Step(nn.Module):
    """One training step's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = DualEncoder(
            TimmImageTower("test_vit", image_size=32),
            CausalTextTower(width=32, layers=2, heads=2, mlp=64, tokenizer="bytes"),
            projection=partial(LinearProjection, embed_dim=16),
            logit_bias=-5.0,
        )
        self.bank = options.pop("bank", False)
        self.approach = Contrastive(encoder, stages={}, **options)
        self.trained = Trained(image_groups="all", text_groups=0 if self.bank else "all")
        freeze(encoder, self.trained, logit_bias=self.approach.loss == "sigmoid")
        if self.bank:
            self.approach.bank_features = torch.randn(9, encoder.text.feature_dim, dtype=dtype)
            self.approach.bank_group = torch.tensor([4, 9, 1, 0, 9, 7, 7, 8, 4])
        self.to(dtype)

    def forward(self, batch: Batch) -> Tensor:
        encoder, approach = self.approach.encoder, self.approach
        image = encoder.project_image(self.trained.image_features(encoder, batch["image"]))
        tokens = {"input_ids": batch["text"], "attention_mask": torch.ones_like(batch["text"])}
        text = encoder.project_text(self.trained.text_features(encoder, tokens))
        loss = approach._bank_loss if self.bank else approach._batch_loss
        return loss(image, text, batch["group"], encoder.logit_scale.exp(), owner=batch["owner"])


OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {"targets": "hard"},
    "groups": {"targets": "multi_positive"},
    "soft": {"targets": "soft"},
    "sigmoid": {"targets": "multi_positive", "loss": "sigmoid"},
    "bank": {"targets": "multi_positive", "bank": True},
}
STEPS = list(product(OPTIONS, [None, 2], [torch.float64, torch.float32]))


def pictures_and_captions() -> Batch:
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    text = torch.randint(3, 250, (11, 8), generator=generator)
    return {"image": image, "text": text, "owner": OWNER, "group": GROUPS}


def gradients_of_steps(pictures: tuple[int, ...]) -> list[Found]:
    found = []
    for name, chunk, dtype in STEPS:
        step: nn.Module = Step(dtype, loss_chunk=chunk, **OPTIONS[name])
        wrapped = step if process_group() is None else DistributedDataParallel(step)
        wrapped(share(pictures_and_captions(), pictures)).backward()
        missing = [name for name, p in step.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        found.append({name: p.grad for name, p in step.named_parameters() if p.grad is not None})
    return found


@pytest.mark.parametrize("pictures", [(4, 3), (2, 1, 4)], ids=str)
def test_under_ddp_every_parameter_of_a_dual_encoder_has_the_joined_batchs_gradient(
    tmp_path: Path, pictures: tuple[int, ...]
) -> None:
    everywhere = in_processes(len(pictures), partial(gradients_of_steps, pictures), tmp_path)
    for place, ((name, chunk, dtype), expected) in enumerate(zip(STEPS, gradients_of_steps((7,)), strict=True)):
        everything = torch.cat([grad.flatten() for grad in expected.values()]).norm()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert ("approach.encoder.logit_bias" in expected) == (name == "sigmoid")
        assert "approach.encoder.logit_scale" in expected
        for found in everywhere:
            assert found[place].keys() == expected.keys()
            for parameter, grad in expected.items():
                error = (found[place][parameter] - grad).norm()
                bound = tolerance * max(grad.norm(), 1e-6 * everything)
                assert error <= bound, f"{name} chunk={chunk} {dtype} {parameter}: {error:.2e} > {bound:.2e}"
