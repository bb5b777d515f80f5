"""Reading weight files safely, with little memory, and saying plainly what does not fit."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipkit.errors import UserError

__all__ = [
    "check_names",
    "copy_weights",
    "each_tensor",
    "fill",
    "is_uninitialized",
    "read_weights",
    "tensor_shapes",
    "uninitialized",
]

WRAPPERS = ("state_dict", "model")  # under which training scripts keep the tensors
REOPEN_AFTER = 64 * 2**20  # bytes


def read_weights(file: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file, or of a pickle that holds tensors and plain containers alone.

    The tensors are copies in memory of their own; at no time is more than that in use.

    Raises:
        UserError: no such file, a damaged one, or a pickle that needs code to be run.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return {name: value.clone() for name, value in each_tensor(file)}
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} is a pickle that would run code when it is read, so it is refused (torch.load with "
            "weights_only=True does not read it). Convert it to safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"{file} is no file of weights that torch reads ({type(error).__name__}: {said})") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds no table of named tensors")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def tensor_shapes(file: Path) -> dict[str, torch.Size]:
    """Names and shapes of a safetensors file, from its header alone."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error


def each_tensor(file: Path, *, ending: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file one by one; each is valid until the next is asked for.

    The file is mapped, and pages that were read count as memory in use until it is closed: so it is opened anew
    every 64 MB.
    """
    try:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name.endswith(ending)]  # noqa: SIM118
        while names:
            read = 0
            with safe_open(file, "pt") as opened:
                while names and read < REOPEN_AFTER:
                    value = opened.get_tensor(names[0])
                    read += value.numel() * value.element_size()
                    yield names.pop(0), value
                    del value
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error


def fill(module: nn.Module, state: dict[str, Tensor], *, source: object) -> None:
    """Make these tensors the module's own (not copies), in the module's dtypes; `state` is emptied.

    Raises:
        UserError: names or shapes differ; the message counts them and names a few.
    """
    own = module.state_dict()
    check_names(own, {name: value.shape for name, value in state.items()}, source=source)
    for name in list(state):
        module.load_state_dict({name: state.pop(name).to(own[name].dtype)}, strict=False, assign=True)


def copy_weights(own: Mapping[str, Tensor], name: str, value: Tensor) -> None:
    """Copy one tensor into the module whose `state_dict()` is `own`."""
    with torch.no_grad():
        own[name].copy_(value)


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, torch.Size], *, source: object) -> None:
    """Raise a `UserError` that says which weights are missing, unknown, or of another shape."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} ({_shape(found[name])} in the file, {_shape(value.shape)} in the model)"
        for name, value in expected.items()
        if name in found and found[name] != value.shape
    ]
    kinds = (("the file lacks", missing), ("the model has no", unknown), ("of another shape:", shapes))
    if any(names for _, names in kinds):
        said = [f"{what} {len(names)} ({_few(names)})" for what, names in kinds if names]
        raise UserError(
            f"{source} holds the weights of another architecture: {'; '.join(said)}. Expected: {len(expected)} tensors"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shape(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "one number"


RANDOM = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"}
RANDOM |= {"xavier_normal_", "orthogonal_"}
ARITHMETIC = {"erfinv_", "mul_", "add_", "clamp_", "div_", "zero_", "fill_", "zeros_", "ones_", "constant_"}
LARGE = 2**16
_BUILDING: ContextVar[bool] = ContextVar("building", default=False)


class _SkipInit(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")  # libraries wrap torch's own functions: they are known by name
        if name in RANDOM or name in ARITHMETIC:
            target = args[0] if args else (kwargs or {}).get("tensor")
            # a parameter alone: torch draws into other tensors again and again until all values lie in bounds
            if isinstance(target, nn.Parameter) and target.numel() >= LARGE:
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def uninitialized() -> Iterator[None]:
    """Build modules whose large parameters hold whatever was in memory, for weights to be loaded right after.

    Drawing initial values takes longer than reading a file, and would touch all of the memory once for nothing.
    """
    token = _BUILDING.set(True)
    try:
        with torch.random.fork_rng(devices=[]), _SkipInit():
            yield
    finally:
        _BUILDING.reset(token)


def is_uninitialized() -> bool:
    """Whether modules are being built whose values mean nothing yet, so that nothing can be checked on them."""
    return _BUILDING.get()
