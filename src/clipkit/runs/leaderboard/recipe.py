"""What a run was: its command, the options it chose, the recipe that it shares with its repetitions, and what it says.

Runs from before `run.json` had `choices` and `recipe` are asked for their command line and their `config.yaml`.

Used by: clipkit.runs.leaderboard.rows
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.runs.choices import conf_root, groups
from clipkit.runs.command_line import unquoted
from clipkit.runs.leaderboard.files import plain
from clipkit.runs.leaderboard.folders import RunFolder
from clipkit.runs.recipe import MAY_CHANGE, SEEDS, recipe_of
from clipkit.runs.sweeps import key_of

__all__ = ["BY_THEMSELVES", "CHOICES", "NoResults", "choices_of", "command_of", "overrides_of", "recipe_in"]

COMMAND = re.compile(r"clipkit\.(\w+)")
CHOICES = ("approach", "backbone", "data")
WITHOUT_RESULTS = (  # commands whose runs are counted, and make no rows
    "describe", "discover", "export", "fetch", "leaderboard", "pack", "predict", "search", "sweep", "tokenizer",
)  # fmt: skip
TELL_NOTHING = (*CHOICES, *SEEDS, *MAY_CHANGE, "data.shots", "trainer.threads")  # or have a column of their own
BY_THEMSELVES = (("trial", "approach.search"),)  # what a sweep says of all its trials


class NoResults(Exception):
    """A run that measures nothing, by its nature; the text is what it is counted as."""


class Said(NamedTuple):
    """An override as a person would type it, and whether it makes a run what it is, besides its choices and seeds."""

    text: str
    key: str
    value: str
    tells: bool


def overrides_of(about: Mapping[str, Any]) -> list[Said]:
    """The command line."""
    said = about.get("overrides")
    return [_read(text) for text in map(str, said)] if isinstance(said, list) else []


@cache
def _read(override: str) -> Said:
    """Once for all runs that say it."""
    text = plain(unquoted(override))
    key = key_of(text)
    return Said(text, key, text.partition("=")[2], _tells(key))


def command_of(folder: RunFolder, about: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """Which command a run is of, "trial" for one of a sweep; empty if nothing says it.

    Raises:
        NoResults: of one that measures nothing.
    """
    if isinstance(about.get("trial"), dict):
        return "trial"
    spoken = COMMAND.search(str(about.get("command", "")))
    command = spoken[1] if spoken else _place_of(folder.path)
    if command == "discover" and said.get("action", "evaluate") == "evaluate":
        return command
    if command == "evaluate" and said.get("model", "").startswith("["):
        raise NoResults("comparison")  # each of its models has a folder of its own below
    if command in WITHOUT_RESULTS:
        raise NoResults(command)
    return command if f"{command}.yaml" in _commands() else ""


def _place_of(path: str) -> str:
    """What follows "outputs" in a path: what failed at once has left its overrides alone."""
    return next((below for above, below in pairwise(Path(path).absolute().parts) if above == "outputs"), "")


def choices_of(about: Mapping[str, Any], command: str, said: Mapping[str, str]) -> dict[str, str]:
    """The options of `CHOICES`, as far as the command knows such groups."""
    chosen = about.get("choices")
    if not isinstance(chosen, dict):
        known = _defaults(command, said.get("experiment", "")) if "overrides" in about else {}
        chosen = {**known, **said}
    return {group: plain(chosen[group]) for group in CHOICES if chosen.get(group) not in (None, "null")}


def recipe_in(folder: RunFolder, about: Mapping[str, Any], overrides: Sequence[Said]) -> str:
    """What runs share that differ in their seeds alone."""
    recipe = about.get("recipe") or _recipe_of_file(folder)
    if not recipe:
        deciding = (said.text for said in overrides if said.tells or said.key in (*CHOICES, "data.shots"))
        recipe = recipe_of(dict.fromkeys(deciding))
    return str(recipe)


def _recipe_of_file(folder: RunFolder) -> str:
    """From `config.yaml`; empty if it cannot be read."""
    import yaml

    try:
        with open(f"{folder.path}/config.yaml", "rb") as file:
            config = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    return recipe_of(config) if isinstance(config, dict) else ""


@cache
def _defaults(command: str, experiment: str) -> dict[str, str]:
    """What a command takes where its command line says nothing, and what an experiment puts in its place."""
    found: dict[str, str] = {}
    files = [f"{'train' if command == 'trial' else command}.yaml"]
    if experiment in groups().get("experiment", ()):
        files.append(f"experiment/{experiment}.yaml")
    for file in files:
        for key, option in _entries(conf_root() / file):
            group = str(key).removeprefix("override ").lstrip("/")
            if option is not None:
                found[group] = str(option)
    return found


def _entries(file: Path) -> Iterator[tuple[Any, Any]]:
    """The defaults list of a YAML, the entries that name a group."""
    from omegaconf import OmegaConf

    if file.is_file():
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
        for entry in config.get("defaults", []):
            yield from entry.items() if isinstance(entry, dict) else ()


@cache
def _commands() -> frozenset[str]:
    return frozenset(file.name for file in conf_root().glob("*.yaml"))


def _tells(key: str) -> bool:
    return not key.startswith(("hydra.", "hydra/")) and not any(
        key == name or (name not in CHOICES and key.startswith(f"{name}.")) for name in TELL_NOTHING
    )
