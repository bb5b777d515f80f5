"""What a class's signature says about the values in its configuration."""

import inspect
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union

__all__ = ["annotation", "arguments", "describe", "fits", "nearest"]


def annotation(target: str, name: str) -> Any:
    """The type of a class's argument; None if it is not annotated, `Parameter.empty` if there is no such argument."""
    callee = _locate(target)
    if callee is None:
        return None
    function: Any = vars(callee)["__init__"] if isinstance(callee, type) and "__init__" in vars(callee) else callee
    parameters = inspect.signature(function).parameters
    if name not in parameters:
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return None if takes_any else inspect.Parameter.empty
    try:
        return typing.get_type_hints(function).get(name)
    except (NameError, TypeError):
        return None


def arguments(target: str) -> list[str]:
    """The names of a class's arguments."""
    callee = _locate(target)
    return list(inspect.signature(callee).parameters) if callee is not None else []


def _locate(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be an argument of this type."""
    origin = typing.get_origin(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if isinstance(value, str) and "${" in value:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin is not None:  # list[int], Mapping[str, float], Sequence[Literal[…]]
        if value is None or not isinstance(value, list | dict):
            return False
        parts = typing.get_args(hint)
        return not (isinstance(value, list) and parts) or all(fits(v, parts[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str)
    return not isinstance(hint, type) or isinstance(value, (hint, dict, str))


def describe(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(v) for v in typing.get_args(hint))
    if typing.get_origin(hint) in (Union, UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (dict, Mapping):
        return "a mapping"
    if typing.get_origin(hint) is not None and parts:
        return f"a list of {describe(parts[0])}"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def nearest(value: Any, hint: Any) -> str:
    """The valid choice that the value resembles most, as the end of a sentence; empty if none does."""
    options = [str(v) for v in _literals(hint)]
    near = get_close_matches(str(value), options, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _literals(hint: Any) -> Iterable[Any]:
    for part in typing.get_args(hint):
        if typing.get_origin(hint) is Literal:
            yield part
        else:
            yield from _literals(part)
