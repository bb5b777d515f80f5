"""From a batch to its embeddings: whole, or in chunks whose graph is not kept, captions by length if wanted.

Run: python -m clipkit.train approach.stages.towers.batch_size=4096 approach.stages.towers.chunk_size=128
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from clipkit.approaches.base import Stage
from clipkit.data.batches import Batch
from clipkit.errors import UserError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.freezing import Trained
from clipkit.models.recompute import recomputed

__all__ = ["check_length_groups", "embed", "embed_images", "embed_texts", "encoding_notes"]

State = dict[str, Tensor]


def embed(
    encoder: DualEncoder, trained: Trained, batch: Batch, *, chunk_size: int | None = None, length_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """[B, D] and [M, D] embeddings of a batch, from pixels and tokens or from stored features.

    With `chunk_size` the trained half of each tower keeps nothing but its input, and backward computes it again, one
    chunk after the other: the memory is that of one chunk, the gradient that of the whole batch (GradCache,
    arXiv 2101.06983, in one graph). The frozen half is computed once: what it hands on is one map a picture, and a
    single trained block would keep a dozen of them, while a second pass costs the time of the larger half.

    Args:
        encoder: the model.
        trained: which half of each tower is trained.
        batch: with `image` or `trunk`, `text` or `text_features` (`clipkit.data.batches`).
        chunk_size: pictures, and captions, that are encoded at a time; null: all of them.
        length_groups: captions are sorted by length and encoded in this many parts, each cut to its longest.
    """
    image = embed_images(encoder, trained, batch, chunk_size=chunk_size)
    if "text_features" in batch:
        return image, encoder.project_text(encoder.text.finish(batch["text_features"]))
    return image, embed_texts(encoder, trained, batch["text"], chunk_size=chunk_size, length_groups=length_groups)


def embed_texts(
    encoder: DualEncoder, trained: Trained, tokens: State, *, chunk_size: int | None = None, length_groups: int = 1
) -> Tensor:
    """[M, D] embeddings of tokenised texts: the text half of `embed`."""

    def captions(state: State) -> Tensor:
        return encoder.project_text(trained.text_tail(encoder, state))

    count = len(tokens["input_ids"])
    chunks = _count(count, chunk_size)
    order, sorted_parts = _split_captions(tokens, min(max(chunks, length_groups), count), length_groups > 1)
    states = (trained.text_trunk(encoder, part) for part in sorted_parts)
    text = _encode(captions, states, chunks > 1, encoder)
    return text if order is None else text[order.argsort()]


def embed_images(
    encoder: DualEncoder, trained: Trained, batch: Batch, *, chunk_size: int | None = None, project: bool = True
) -> Tensor:
    """[B, D] embeddings, or [B, F] features without `project`, of a batch's pictures: the image half of `embed`."""

    def tail(state: State) -> Tensor:
        features = trained.image_tail(encoder, state)
        return encoder.project_image(features) if project else features

    stored: State = batch["trunk"] if "trunk" in batch else {"pixels": batch["image"]}
    count = len(next(iter(stored.values())))
    chunks = 1 if "feature" in stored else _count(count, chunk_size)  # a feature has nothing behind it to save
    split = {name: value.tensor_split(chunks) for name, value in stored.items()}
    parts = ({name: pieces[chunk] for name, pieces in split.items()} for chunk in range(chunks))
    states = parts if "trunk" in batch else (trained.image_trunk(encoder, part["pixels"]) for part in parts)
    return _encode(tail, states, chunks > 1, encoder)


def check_length_groups(encoder: DualEncoder, count: int) -> None:
    """Raise a `UserError` unless captions of this encoder can be encoded in `count` parts of like length."""
    if count < 1:
        raise UserError(f"approach.text_length_groups={count}: 1 or more are expected")
    if count > 1 and not encoder.text.trims:
        raise UserError(
            f"approach.text_length_groups={count}: this text tower ({type(encoder.text.model).__name__}) sees its "
            "padding, so captions cannot be cut to their length: use approach.text_length_groups=1"
        )


def encoding_notes(encoder: DualEncoder, stages: Mapping[str, Stage], *, stored: bool, length_groups: int) -> list[str]:
    """What a person should know of chunks, length groups and patch dropout in these stages.

    Args:
        encoder: the model.
        stages: by name.
        stored: frozen towers are served from stored features.
        length_groups: of captions.
    """
    active = {name: stage for name, stage in stages.items() if stage.epochs > 0}
    said = []
    for name, stage in active.items():
        if encoder.image.patch_dropout > 0 and not stage.train.image_whole:
            said.append(f"stage {name}: patch_dropout does nothing, the image tower's first layers are frozen")
        if stage.chunk_size is None:
            continue
        if stored and stage.train.image_frozen and stage.train.text_frozen:
            said.append(f"stage {name}: chunk_size does nothing, both towers are frozen and their features stored")
        elif not stage.train.image_frozen and encoder.image.update_batchnorm and _has_batchnorm(encoder.image):
            said.append(
                f"stage {name}: each chunk of {stage.chunk_size} pictures has batch statistics of its own (the image "
                "tower has BatchNorm), so the step is close to the whole batch's, not equal"
            )
    if length_groups > 1 and stored and active and all(stage.train.text_frozen for stage in active.values()):
        said.append("text_length_groups does nothing: the text tower is frozen and its features stored")
    return said


def _encode(tail: Callable[[State], Tensor], states: Iterator[State], again: bool, encoder: DualEncoder) -> Tensor:
    """The embeddings of all parts, in order; `again`: what is trained is computed anew in backward."""
    return torch.cat([recomputed(tail, state, inside=encoder) if again else tail(state) for state in states])


def _count(rows: int, chunk_size: int | None) -> int:
    """Chunks of `rows`, as few as can be and as even as can be: a last chunk of one has no batch statistics."""
    return 1 if chunk_size is None else max(1, -(-rows // chunk_size))


def _split_captions(tokens: State, parts: int, by_length: bool) -> tuple[Tensor | None, list[State]]:
    """Captions in parts; by length, each part cut to its longest, with the order that they were taken in."""
    if not by_length:
        split = {name: value.tensor_split(parts) for name, value in tokens.items()}
        return None, [{name: pieces[part] for name, pieces in split.items()} for part in range(parts)]
    mask = tokens["attention_mask"]
    ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)  # [M] columns up to the last token
    ends, order = ends.sort(stable=True)
    longest = [max(1, length) for length in ends[_last_rows(len(ends), parts)].tolist()]  # the GPU is asked once
    rows = order.tensor_split(parts)
    return order, [
        {name: value[chosen, :length] for name, value in tokens.items()}
        for chosen, length in zip(rows, longest, strict=True)
    ]


def _last_rows(count: int, parts: int) -> list[int]:
    """The last row of each part of `tensor_split`."""
    return [int(piece[-1]) for piece in torch.arange(count).tensor_split(parts)]


def _has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
