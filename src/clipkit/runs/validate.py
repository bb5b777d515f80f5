"""Check a command line before anything is loaded: every mistake at once, each with the nearest valid name."""

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clipkit.errors import UserError
from clipkit.runs.choices import group_of, groups, second_places
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import all_keys, compose_config, parent_of
from clipkit.runs.signatures import annotation, arguments, describe, fits, nearest

__all__ = ["check_command_line"]


STAGE_GROUP = re.compile(r"approach\.stages\.\w+\.(optimizer|scheduler)\.")
WORDS_FOR_NUMBERS = ("all", "auto", "fresh")  # image_groups, workers, views


def check_command_line(command: str, overrides: Sequence[str]) -> list[str]:
    """Raise one `UserError` that lists everything wrong with these overrides.

    Args:
        command: the name of the primary configuration ("train").
        overrides: as given, one element each.

    Returns:
        The overrides as Hydra takes them: keys that are allowed but not written in the YAML get their `++`.
    """
    problems: list[str] = []
    parsed = [o for o in _parse(overrides, problems) if not o.key_or_group.startswith("hydra")]  # Hydra checks its own
    chosen, keys = [], []
    for override in parsed:
        if group_of(override.key_or_group) is not None:
            if _check_option(override, problems):
                chosen.append(override)
        else:
            keys.append(override)
    plain = [_first_choice(o) for o in chosen]
    try:
        config = compose_config(command, plain)
    except (HydraException, OmegaConfBaseException) as error:
        if not chosen:
            raise  # the defaults alone do not compose: our mistake
        raise UserError(_listed([*problems, str(error).strip().partition("\n")[0]])) from error
    good = []
    known_to_yaml = set()
    unclear = {o.package or group_of(o.key_or_group) for o in parsed if o not in chosen and o not in keys}
    unchosen = {place: group for place, group in second_places(command).items() if config[place] is None}
    for override in keys:
        place = override.key_or_group.split(".")[0]
        if place in unclear:
            continue  # its group's option is not known
        if place in unchosen and place != override.key_or_group:
            problems.append(f"{_line(override)}: choose {place}=… first, an option of the group {unchosen[place]}")
            continue
        if _check_key(override, config, problems):
            good.append(override)
            if (
                _in_yaml(config, override.key_or_group)
                or override.is_add()
                or override.is_force_add()
                or override.is_delete()
            ):
                known_to_yaml.add(_line(override))
    texts = {_line(o): _line(o) if _line(o) in known_to_yaml else f"++{_line(o)}" for o in good}
    texts |= {_line(o): text for o in good if (text := _replacing(o, config)) is not None}
    if not unclear:
        for one in _expand(chosen + good, texts):
            try:
                whole = config if one == plain else compose_config(command, one)  # that takes a tenth of a second
            except (HydraException, OmegaConfBaseException) as error:  # a key inside of a mapping's value
                reasons = [
                    str(each).strip().partition("\n")[0] for each in (error, error.__cause__) if each is not None
                ]
                problems.append(": ".join(dict.fromkeys(reasons)))
                break
            problems += [p for p in check_combination(whole) if p not in problems]
    if problems:
        raise UserError(_listed(problems))
    return [texts.get(text, text) for text in overrides]


def _parse(overrides: Sequence[str], problems: list[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            reason = str(error).partition("\n")[0]
            problems.append(f"{text!r} is not key=value: {reason}" if "=" in text else f"{text!r} is not key=value")
    return parsed


def _check_option(override: Override, problems: list[str]) -> bool:
    group = group_of(override.key_or_group)
    assert group is not None
    options, place = groups()[group], override.package or group
    before = len(problems)
    for value in _values(override):
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name is None or override.is_delete():
                continue
            if name not in options:
                near = get_close_matches(str(name), options, n=1)
                hint = f"did you mean {place}={near[0]}? " if near else ""
                problems.append(f"{place}={name}: {hint}choose from {', '.join(options)}")
    return len(problems) == before


def _check_key(override: Override, config: DictConfig, problems: list[str]) -> bool:
    key = override.key_or_group
    if key.startswith("sweep.space."):
        return True  # `clipkit.runs.study.space` reads it
    stage_group = STAGE_GROUP.match(key)
    stage = ".".join(key.split(".")[:3])
    if stage_group and not _in_yaml(config, key) and OmegaConf.select(config, stage) is not None:
        key = key[stage_group.start(1) :]  # a stage takes every key of the group
    if override.package is not None:
        problems.append(f"{_line(override)}: no group {key}; groups: {', '.join(groups())}")
        return False
    parent, last = parent_of(config, key)
    known = _in_yaml(config, key)
    added = (override.is_add() or override.is_force_add()) and not key.startswith("logger.")  # a key of W&B's, say
    target = parent.get("_target_") if isinstance(parent, DictConfig) else None
    if not known and not added:
        if _free(config, key):
            return True
        names = sorted({*all_keys(config), *groups()})
        near = get_close_matches(key, names, n=1, cutoff=0.5) or [n for n in names if n.split(".")[-1] == last][:1]
        hint = f"; did you mean {near[0]}?" if near else f"; top-level keys: {', '.join(sorted(map(str, config)))}"
        problems.append(f"there is no key {override.key_or_group}{hint}")
        return False
    if override.is_delete():
        return True
    default = None
    if known and not OmegaConf.is_missing(parent, last):
        default = OmegaConf.to_container(OmegaConf.create({"v": OmegaConf.to_container(parent)[last]}))["v"]  # type: ignore[call-overload,index]  # a mapping or list
    before = len(problems)
    hint_of_class = annotation(target, last) if target and isinstance(default, str | list | bool | None) else None
    if isinstance(default, bool) and hint_of_class in (bool, "bool", inspect.Parameter.empty):
        hint_of_class = None  # its default says it better
    for value in _values(override):
        if hint_of_class is not None and not fits(value, hint_of_class):
            problems.append(f"{key}={_shown(value)}: {describe(hint_of_class)} expected{nearest(value, hint_of_class)}")
        elif hint_of_class is None and not _fits_default(value, default):
            problems.append(f"{key}={_shown(value)}: {_kind(default)} expected (default: {_shown(default)})")
    if added and not known and target and annotation(target, last) is inspect.Parameter.empty:
        problems.append(f"{key}: {target} has no argument {last}; it has {', '.join(arguments(target))}")
    return len(problems) == before


def _line(override: Override) -> str:
    return str(override.input_line)


def _in_yaml(config: DictConfig, key: str) -> bool:
    parent, last = parent_of(config, key)
    return isinstance(parent, DictConfig | ListConfig) and _has(parent, last)


def _free(config: DictConfig, key: str) -> bool:
    """Keys below a mapping that is empty by default (optimizer.group_lr.image) may be anything."""
    parent, _ = parent_of(config, key)
    return isinstance(parent, DictConfig) and len(parent) == 0


def _has(parent: DictConfig | ListConfig, last: str) -> bool:
    return last.isdigit() and int(last) < len(parent) if isinstance(parent, ListConfig) else last in list(parent.keys())


def _replacing(override: Override, config: DictConfig) -> str | None:
    """A list in the place of a searched range, or the reverse, as Hydra takes it: it merges neither. None of others."""
    key, value = override.key_or_group, _line(override).partition("=")[2]
    if not key.startswith("sweep.space.") or override.is_delete():
        return None
    old, new = OmegaConf.select(config, key), override.value()
    if isinstance(old, DictConfig) and isinstance(new, list):
        return f"++{key}.choices={value}"
    if isinstance(old, ListConfig) and isinstance(new, dict):
        escaped = value.replace("'", "\\'")
        return f"{key}='${{oc.create:{escaped}}}'"
    return None


def _values(override: Override) -> list[Any]:
    """The value, or every value of a sweep, as plain Python."""
    if override.is_delete():
        return []
    if override.is_sweep_override():
        return [_plain(value) for value in override.sweep_iterator()]
    return [_plain(override.value())]


def _plain(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, str):  # sweep iterators give texts
        try:
            return OmegaConf.to_container(OmegaConf.create(f"v: {value}"))["v"]  # type: ignore[call-overload,index]
        except (YAMLError, OmegaConfBaseException):  # any text that is not YAML is a plain text
            return value
    return value


def _fits_default(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return True
    if isinstance(value, str) and "${" in value:
        return True
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        if isinstance(value, str):
            return value in WORDS_FOR_NUMBERS and isinstance(default, int)
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, str):
        return not isinstance(value, dict | list)
    return isinstance(value, type(default))


def _kind(value: Any) -> str:
    return describe(type(value)) if not isinstance(value, list | dict) else f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return str(_line(override))
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _expand(overrides: Sequence[Override], texts: dict[str, str], limit: int = 64) -> list[list[str]]:
    """One list of overrides per job of a sweep over groups (the combinations that `needs` and `provides` decide)."""
    jobs: list[list[str]] = [[]]
    for override in overrides:
        written = texts.get(_line(override), _line(override))
        variants = [str(written)]
        if override.is_sweep_override():
            key = written.partition("=")[0]
            variants = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if group_of(override.key_or_group) is None:
                variants = variants[:1]
        jobs = [[*job, text] for job in jobs for text in variants][:limit]
    return jobs


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} mistakes on the command line:\n" + "\n".join(f"  - {problem}" for problem in problems)
