"""Chunks and length groups: another order of work, the same embeddings and gradients."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipkit.approaches.base import Stage
from clipkit.approaches.contrastive import Contrastive
from clipkit.approaches.encoding import embed, encoding_notes
from clipkit.approaches.optimization import Constant, Optimizer
from clipkit.errors import UserError
from clipkit.losses import contrastive_loss
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained, freeze
from clipkit.models.image import TimmImageTower
from clipkit.models.projection import LinearMLPProjection
from clipkit.models.text import TransformersTextTower
from clipkit.models.text_transformer import CausalTextTower

BERT = {"model_type": "bert", "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0, "hidden_dropout_prob": 0.2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPS = {"proj_drop_rate": 0.2, "drop_path_rate": 0.2}
LENGTHS = (3, 40, 1, 17, 25, 2, 60, 9, 33, 5, 12)
HALVES = [
    Trained(image_groups="all", text_groups="all"),
    Trained(image_groups=2, text_groups=1),
    Trained(image_groups=0, text_groups="all"),
    Trained(image_groups=1, norms="all"),
]


def vit_and_bert(**text: Any) -> DualEncoder:
    """Both towers and the projections with dropout, pictures with patch dropout too, in float64."""
    torch.manual_seed(0)
    image = TimmImageTower("test_vit", image_size=32, patch_dropout=0.5, model_args={"patch_size": 8, **DROPS})
    words = TransformersTextTower(config={**BERT, **text}, max_length=100)
    return DualEncoder(image, words, projection=partial(LinearMLPProjection, embed_dim=16, dropout=0.1)).double()


def convolutions() -> DualEncoder:
    torch.manual_seed(0)
    text = CausalTextTower(width=32, layers=2, heads=4, mlp=64, tokenizer="bytes", max_length=100)
    image = TimmImageTower("test_efficientnet", image_size=32)
    return DualEncoder(image, text, projection=partial(LinearMLPProjection, embed_dim=16)).double()


def batch_of(encoder: DualEncoder, captions: int = 1) -> dict[str, Any]:
    """Eleven pictures and `captions` captions of each, of quite different lengths."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=generator)
    texts = [chr(97 + i) * length for i, length in enumerate(LENGTHS * captions)]
    return {"image": pixels, "text": encoder.tokenize(texts)}


def loss_of(encoder: DualEncoder, image: Tensor, text: Tensor) -> Tensor:
    """Something that every embedding and the temperature matter to, whatever their numbers."""
    return (encoder.logit_scale.exp() * image @ text.T).log_softmax(1).square().mean()


def gradients(encoder: DualEncoder, image: Tensor, text: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    loss_of(encoder, image, text).backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def kept(encoder: DualEncoder, trained: Trained, batch: dict[str, Any], chunks: int, texts: int) -> Any:
    """The same chunks as plain calls, whose graphs are all kept."""
    image = [
        encoder.project_image(trained.image_features(encoder, part)) for part in batch["image"].tensor_split(chunks)
    ]
    rows = torch.arange(len(batch["text"]["input_ids"])).tensor_split(texts)
    parts = [{name: value[part] for name, value in batch["text"].items()} for part in rows]
    text = [encoder.project_text(trained.text_features(encoder, part)) for part in parts]
    return torch.cat(image), torch.cat(text)


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """‖g − g′‖ ≤ tolerance · ‖g‖, or of a millionth of all gradients' where g is pure rounding."""
    assert got.keys() == wanted.keys()
    whole = torch.stack([value.norm() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (got[name] - value).norm() <= tolerance * max(value.norm(), 1e-6 * whole), name


@pytest.mark.parametrize("trained", HALVES, ids=str)
@pytest.mark.parametrize("captions", [1, 3])
def test_chunks_give_the_gradients_of_the_kept_graph_with_every_dropout_on(trained: Trained, captions: int) -> None:
    encoder = vit_and_bert()
    freeze(encoder.train(), trained)
    batch = batch_of(encoder, captions)
    torch.manual_seed(3)
    image, text = kept(encoder, trained, batch, 3, 3 * captions)
    wanted = gradients(encoder, image, text)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    images, texts = embed(encoder, trained, batch, chunk_size=4)
    assert torch.equal(images, image)
    assert torch.equal(texts, text)
    got = gradients(encoder, images, texts)
    assert got["logit_scale"].abs() > 0
    assert_close(got, wanted, 1e-10)
    assert torch.equal(torch.get_rng_state(), after)  # the second computation draws nothing anew


@pytest.mark.parametrize("size", [11, 12, 1000, None])
def test_a_chunk_as_large_as_the_batch_is_the_batch(size: int | None) -> None:
    encoder, trained = vit_and_bert(), HALVES[0]
    freeze(encoder.train(), trained)
    batch = batch_of(encoder)
    torch.manual_seed(3)
    wanted = gradients(encoder, *kept(encoder, trained, batch, 1, 1))
    torch.manual_seed(3)
    got = gradients(encoder, *embed(encoder, trained, batch, chunk_size=size))
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


class Held:
    """The bytes that a graph keeps for backward, each storage once, parameters left out."""

    def __init__(self, encoder: DualEncoder) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        self.found: dict[int, int] = {}

    def pack(self, value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in self.known:
            self.found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value


@pytest.mark.parametrize("trained", HALVES[:2], ids=str)
def test_chunks_keep_hardly_anything_of_the_towers_graph(trained: Trained) -> None:
    encoder = vit_and_bert()
    freeze(encoder.train(), trained)
    sizes = []
    for chunk in (None, 4):
        held = Held(encoder)
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda value: value):
            outputs = embed(encoder, trained, batch_of(encoder), chunk_size=chunk)
        sizes.append(sum(held.found.values()))
        assert all(output.requires_grad for output in outputs)
    assert sizes[1] < sizes[0] / 50


def test_the_frozen_half_is_computed_once() -> None:
    encoder, trained, calls = vit_and_bert(), Trained(image_groups=2, text_groups=1), dict.fromkeys("abcd", 0)
    freeze(encoder.train(), trained)

    def count(name: str, module: nn.Module) -> None:
        def hook(*_: Any) -> None:
            calls[name] += 1

        module.register_forward_pre_hook(hook)

    blocks, layers = encoder.image.model.blocks, encoder.text.model.encoder.layer
    for name, module in zip("abcd", (blocks[0], blocks[-1], layers[0].attention, layers[-1].attention), strict=True):
        count(name, module)
    gradients(encoder, *embed(encoder, trained, batch_of(encoder), chunk_size=4))
    assert calls == {"a": 3, "b": 6, "c": 3, "d": 6}  # three chunks: once where frozen, twice where trained


def test_batch_statistics_are_updated_once_and_by_each_chunk() -> None:
    results = []
    for chunked in (False, True):
        encoder, trained = convolutions().train(), HALVES[0]
        freeze(encoder, trained)
        batch = batch_of(encoder)
        outputs = embed(encoder, trained, batch, chunk_size=4) if chunked else kept(encoder, trained, batch, 3, 3)
        results.append((gradients(encoder, *outputs), dict(encoder.named_buffers())))
    (wanted, buffers), (got, chunked_buffers) = results
    assert_close(got, wanted, 1e-10)
    assert int(buffers["image.model.bn1.num_batches_tracked"]) == 3
    assert all(torch.equal(chunked_buffers[name], value) for name, value in buffers.items())


def test_under_bfloat16_autocast_chunks_give_the_same_too() -> None:
    encoder, trained = vit_and_bert().float(), HALVES[0]
    freeze(encoder.train(), trained)
    found = []
    for chunked in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            batch = batch_of(encoder)
            outputs = embed(encoder, trained, batch, chunk_size=4) if chunked else kept(encoder, trained, batch, 3, 3)
        found.append(gradients(encoder, *outputs))
    assert_close(found[1], found[0], 1e-6)


@pytest.mark.parametrize("make", [partial(vit_and_bert, **NO_DROPOUT), convolutions])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("trained", [HALVES[0], HALVES[1]], ids=str)
def test_captions_by_length_give_the_same_embeddings_and_gradients(
    make: Any, chunk_size: int | None, trained: Trained
) -> None:
    encoder = make()
    freeze(encoder, trained)
    encoder.eval()
    batch, results = batch_of(encoder, 2), []
    for groups in (1, 5):
        image, text = embed(encoder, trained, batch, chunk_size=chunk_size, length_groups=groups)
        results.append((text.detach(), gradients(encoder, image, text)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
    assert_close(results[1][1], results[0][1], 1e-10)


def test_captions_by_length_cost_fewer_tokens() -> None:
    encoder, seen = convolutions(), []
    encoder.text.model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    for groups in (1, 4):
        embed(encoder, HALVES[0], batch_of(encoder), length_groups=groups)
    assert sum(seen[1:]) < seen[0] / 2
    assert len(seen) == 5


@pytest.mark.parametrize("length_groups", [2, 30])
def test_one_caption_and_the_empty_one_are_captions_too(length_groups: int) -> None:
    encoder = convolutions().eval()
    batch = batch_of(encoder) | {"text": encoder.tokenize([""])}
    expected = encoder.encode_text(encoder.tokenize([""]))
    found = embed(encoder, HALVES[0], batch, length_groups=length_groups, chunk_size=4)[1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def siglip() -> DualEncoder:
    config = {**BERT, "model_type": "siglip_text_model", "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}
    text = TransformersTextTower(config=config, pooling="pooler", tokenizer="bytes", max_length=64)
    image = TimmImageTower("test_vit", image_size=32, model_args={"patch_size": 8})
    return DualEncoder(image, text, projection=partial(LinearMLPProjection, embed_dim=16))


def test_a_tower_that_sees_its_padding_refuses_length_groups() -> None:
    with pytest.raises(UserError, match=r"text_length_groups=3.*sees its padding"):
        Contrastive(siglip(), stages={}, text_length_groups=3)
    with pytest.raises(UserError, match="1 or more"):
        Contrastive(vit_and_bert(), stages={}, text_length_groups=0)
    Contrastive(siglip(), stages={})


def stage(train: Trained, **options: Any) -> Stage:
    optimizer = Optimizer(torch.optim.AdamW, lr=1e-3)
    return Stage(epochs=1, train=train, batch_size=32, optimizer=optimizer, scheduler=Constant(), **options)


@pytest.mark.parametrize("size", [0, -3, 2.5, "many"])
def test_a_chunk_is_a_whole_number_of_pictures(size: Any) -> None:
    with pytest.raises(UserError, match="chunk_size"):
        stage(Trained(), chunk_size=size)


def test_what_a_person_should_know_of_chunks_is_said() -> None:
    def said(encoder: DualEncoder, train: Trained, stored: bool = True, groups: int = 1, **options: Any) -> list[str]:
        return encoding_notes(encoder, {"only": stage(train, **options)}, stored=stored, length_groups=groups)

    cnn, vit = convolutions(), vit_and_bert()
    assert said(cnn, Trained()) == said(vit, HALVES[0], chunk_size=8, groups=3) == []
    assert "patch_dropout does nothing" in said(vit, Trained(image_groups=1))[0]
    vit.image.drop_patches(0)
    assert said(vit, Trained(), stored=False, chunk_size=8) == []
    assert "chunk_size does nothing" in said(vit, Trained(), chunk_size=8)[0]
    assert "batch statistics" in said(cnn, HALVES[0], chunk_size=8)[0]
    assert "text_length_groups does nothing" in said(vit, Trained(image_groups=1), groups=3)[0]


class Step(nn.Module):
    """What a training step does, as the forward that DistributedDataParallel wraps."""

    def __init__(self, chunk_size: int | None) -> None:
        super().__init__()
        self.encoder, self.chunk_size = vit_and_bert(), chunk_size
        freeze(self.encoder.train(), HALVES[1])

    def forward(self, batch: dict[str, Any]) -> Tensor:
        image, text = embed(self.encoder, HALVES[1], batch, chunk_size=self.chunk_size)
        return contrastive_loss(image, text, logit_scale=self.encoder.logit_scale.exp())


def one_of_two(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    try:
        found = {}
        for chunk_size in (None, 3):
            step = Step(chunk_size)
            batch = batch_of(step.encoder)
            mine = slice(0, 6) if number == 0 else slice(6, 11)  # uneven shares: two chunks each
            batch = {"image": batch["image"][mine], "text": {k: v[mine] for k, v in batch["text"].items()}}
            parallel = DistributedDataParallel(step)
            if chunk_size is None:  # the same chunks, with the graph kept
                step.forward = lambda b, s=step: contrastive_loss(  # type: ignore[method-assign,misc]
                    *kept(s.encoder, HALVES[1], b, 2, 2), logit_scale=s.encoder.logit_scale.exp()
                )
            for passes in range(2):  # a second backward of the same reducer
                torch.manual_seed(10 * number + passes)
                parallel(copy.copy(batch)).backward()
            found[str(chunk_size)] = {n: p.grad for n, p in step.named_parameters() if p.grad is not None}
        torch.save(found, f"{folder}/{number}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_get_the_same_gradients_with_chunks_as_without(tmp_path: Path) -> None:
    mp.start_processes(one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1))
    assert_close(first["3"], first["None"], 1e-10)
    assert all(torch.equal(first["3"][name], value) for name, value in second["3"].items())
