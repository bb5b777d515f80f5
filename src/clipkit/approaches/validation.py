"""The validation set, put together from the batches of all processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data.batches import Batch
from clipkit.ranks import gather

__all__ = ["Seen", "joined", "seen"]

Seen = dict[str, Any]  # what is kept of a validation batch
PAIRS = {"image_id": ("image", "image_group"), "caption_id": ("text", "text_group")}


def seen(batch: Batch, image: Tensor, text: Tensor) -> Seen:
    """A batch's embeddings [B, D] and [M, D] on the processor, with ids and groups."""
    return {
        "image": image.cpu(),
        "text": text.cpu(),
        "image_group": batch["group"].cpu(),
        "text_group": batch["group"][batch["text_owner"]].cpu(),
        "image_id": batch["image_id"].cpu(),
        "caption_id": batch["caption_id"].cpu(),
    }


def joined(parts: Sequence[Seen], owned: Mapping[str, Sequence[str]] = PAIRS) -> Seen:
    """Every picture (and caption) of the validation set once, in order, whichever process has seen it.

    Args:
        parts: this process's batches; every process must call.
        owned: by the name of the ids, the names of what has one row for each of them.
    """
    everything = [part for own in gather(list(parts)) for part in own]
    whole = {name: torch.cat([part[name] for part in everything]) for name in everything[0]}
    for ids, names in owned.items():
        _, first = np.unique(whole[ids].numpy(), return_index=True)  # some may have been given to two processes
        for name in names:
            whole[name] = whole[name][torch.from_numpy(first)]
    return whole
