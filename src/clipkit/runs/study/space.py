"""What a sweep searches: parameters by configuration key, read from `sweep.space` and checked before anything runs.

Used by: clipkit.sweep
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from clipkit.errors import UserError

__all__ = ["Parameter", "Value", "read_space"]

Value = float | int | str | bool | None
WORDS = ("low", "high", "log", "step", "choices")


@dataclass(frozen=True)
class Parameter:
    """One key of the configuration, and the values it may take.

    Args:
        key: dotted, or a group's name; `*` stands for the name of every stage.
        low, high: both ends belong to the range; None where there are choices.
        log: draw evenly in the logarithm.
        step: between values; whole numbers have 1.
        choices: in place of a range.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Value, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(list(self.choices))
        assert self.low is not None
        assert self.high is not None
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that have to be valid if all are: both ends, of numbers to choose from too, or every choice."""
        if self.choices is None:
            return self.low, self.high
        numbers = [one for one in self.choices if isinstance(one, int | float) and not isinstance(one, bool)]
        return (min(numbers), max(numbers)) if len(numbers) == len(self.choices) else self.choices

    def described(self) -> dict[str, Any]:
        """As plain values, for comparison with another sweep's."""
        said = {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return {"choices": list(self.choices)} if self.choices is not None else said


def read_space(space: Mapping[str, Any], *, fixed: Sequence[str] = ()) -> list[Parameter]:
    """The parameters of a nested mapping, in its order.

    Args:
        space: by the parts of the keys; a mapping with `low` or `choices` is a parameter, and may hold further keys
            beside them (the group `approach`, and `approach.margin`).
        fixed: keys that the command line gives a value, and which therefore are no parameters.

    Raises:
        UserError: everything that is wrong with it, all mistakes together.
    """
    problems: list[str] = []
    found: list[Parameter] = []
    for key, entry in _entries(space, "", problems):
        if not any(_same(key, other) for other in fixed):
            try:
                found.append(_parameter(key, entry))
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems) if len(problems) == 1 else "\n  - ".join(["the space:", *problems]))
    return found


def _same(key: str, given: str) -> bool:
    """Whether what the command line gives is this key; `*` of the space is any stage."""
    parts, others = key.split("."), given.split(".")
    return len(parts) == len(others) and all(a in (b, "*") or b == "*" for a, b in zip(parts, others, strict=True))


def _entries(node: Mapping[str, Any], above: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{above}{name}"
        if isinstance(value, list):
            yield key, {"choices": value}
        elif isinstance(value, Mapping):
            own = {word: value[word] for word in value if word in WORDS}
            if own:
                yield key, own
            for other in value:
                if own and other not in WORDS and not isinstance(value[other], Mapping | list | None):
                    near = get_close_matches(str(other), WORDS, n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    problems.append(f"sweep.space.{key}: there is no {other}, but {', '.join(WORDS)}{hint}")
            deeper = {str(k): v for k, v in value.items() if k not in WORDS and isinstance(v, Mapping | list | None)}
            if not own and len(deeper) < len(value):
                deeper |= {str(k): v for k, v in value.items() if k not in deeper}
            yield from _entries(deeper, f"{key}.", problems)
        elif value is not None:  # null: not searched
            problems.append(f"sweep.space.{key}={value} is one value: to fix it, write {key}={value}")


def _parameter(key: str, entry: Mapping[str, Any]) -> Parameter:
    where = f"sweep.space.{key}"
    if entry.get("choices") is not None:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: choices are a list of one or more values")
        if any(isinstance(one, Mapping | list) for one in choices):
            raise UserError(f"{where}: each choice is a number, a text, true, false or null")
        return Parameter(key, choices=tuple(dict.fromkeys(choices)))
    low, high, step = (entry.get(word) for word in ("low", "high", "step"))
    for word, value in (("low", low), ("high", high), ("step", step)):
        if value is None and word != "step":
            raise UserError(f"{where}: {word} is missing: {{low: …, high: …}} or a list of choices is expected")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)):
            raise UserError(f"{where}.{word}={value}: a number is expected")
    assert low is not None
    assert high is not None
    log = bool(entry.get("log", False))
    if not math.isfinite(low) or not math.isfinite(high) or low > high:
        raise UserError(f"{where}: low={low} to high={high} is no range")
    if log and low <= 0:
        raise UserError(f"{where}: log needs low above 0, not {low}")
    if step is not None and (log or step <= 0 or step > high - low):
        raise UserError(f"{where}: step={step} is for ranges without log, above 0 and no larger than the range")
    return Parameter(key, low, high, log, step)
