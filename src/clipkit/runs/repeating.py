"""A recorded run, run again: from its command line, with the values and threads that it had.

Used by: clipkit.repeat
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipkit.errors import UserError
from clipkit.runs import build
from clipkit.runs.child import run_child, status_of
from clipkit.runs.choices import groups
from clipkit.runs.command_line import quoted
from clipkit.runs.compose import compose_config
from clipkit.runs.endings import Interrupted
from clipkit.runs.progress import as_typed, console, say
from clipkit.runs.record import read_json
from clipkit.runs.sweeps import key_of

__all__ = ["Planned", "Recorded", "plan", "recorded", "run_again"]

COMMANDS = ("train", "evaluate")
LEFT_OUT = (
    "name",
    "overwrite",
    "resume",
    "run_dir",
    "logger",
)  # of the command line: where the run goes, who hears of it
# of the configuration: what decides nothing; of the groups, each stage has its own values
UNCOMPARED = (*LEFT_OUT, "cache_dir", "data.cache_dir", "trainer.threads", "optimizer", "scheduler")
ROUNDS = 4  # a value that is put back may change one that follows from it


@dataclass(frozen=True)
class Recorded:
    """A finished run as its folder tells of it.

    Args:
        command: train or evaluate.
        about, config, metrics: `run.json`, `config.yaml`, `metrics.json`.
    """

    folder: Path
    command: str
    about: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass
class Planned:
    """How it is run again.

    Args:
        overrides: the command line.
        place: the folder to start it in: relative paths in it are meant from there.
        environment: variables that it needs beside this process's.
        put_back: values that are the recorded ones, and no longer what the command line gives: key, then, now.
        gone, new: keys of the configuration that are there no longer, or were not there then.
        notes: to be said before it starts.
    """

    overrides: list[str]
    place: Path
    environment: dict[str, str] = field(default_factory=dict)
    put_back: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recorded(run: str) -> Recorded:
    """The run in a folder.

    Raises:
        UserError: there is none, it has not ended well, or it is of a command that has no numbers to compare.
    """
    folder = Path(run).expanduser().absolute()
    where = f"run={run}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder")
    about = read_json(folder / "run.json")
    if about is None:
        inside = sorted(str(file.parent.relative_to(folder)) for file in folder.glob("*/run.json"))
        hint = f"; it holds the runs {', '.join(inside[:8])}: name one of them, run={run}/{inside[0]}" if inside else ""
        raise UserError(f"{where}: no run folder (there is no run.json){hint}")
    if not about.get("overrides") and "overrides" not in about:
        raise UserError(f"{where}: {folder / 'run.json'} is damaged, or of a run that had not begun: no command line")
    command = "train" if "trial" in about else str(about.get("command", "")).partition("clipkit.")[2].split(" ")[0]
    if command not in COMMANDS:
        raise UserError(f"{where} is a run of {command or 'no known command'}: runs of {' and '.join(COMMANDS)} repeat")
    status = about.get("status")
    if status != "finished":
        go_on = f"; continue it with python -m clipkit.train resume={run}" if command == "train" else ""
        said = f" ({about['error']})" if about.get("error") else ""
        raise UserError(f"{where} is {status}{said}, not finished: it has no numbers to compare{go_on}")
    metrics = read_json(folder / "metrics.json")
    if not metrics:
        raise UserError(f"{where}: metrics.json is {'missing' if metrics is None else 'empty or damaged'}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:  # YAML has a dozen kinds
        raise UserError(f"{where}: config.yaml cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{where}: config.yaml is damaged: no keys")
    return Recorded(folder, command, about, {str(key): value for key, value in config.items()}, metrics)


def plan(before: Recorded, *, cache_dir: str | None) -> Planned:
    """How to run it again.

    Args:
        before: the run.
        cache_dir: another place for features than its command line says; None: as it says.

    Raises:
        UserError: its command line is none of this version's, or its processes were started from outside.
    """
    trainer = before.config.get("trainer") or {}
    if trainer.get("processes") == "outside":
        raise UserError(
            f"{before.folder} was trained by {before.about.get('processes')} processes that torchrun or SLURM had "
            f"started: start it as then, with another name, and compare metrics.json: {before.about.get('command')}"
        )
    notes = []
    place = Path(str(before.about.get("cwd") or Path.cwd()))
    if not place.is_dir():
        notes.append(f"the folder that it was started in is gone ({place}): relative paths are taken from here")
        place = Path.cwd()
    dropped = (*LEFT_OUT, *(["cache_dir"] if cache_dir is not None else []))
    overrides = [text for text in _known_here(before.about) if not _belongs(key_of(text), dropped)]
    overrides += [] if cache_dir is None else [f"cache_dir={quoted(str(Path(cache_dir).expanduser().absolute()))}"]
    if (own := _own_experiment(before.about)) is not None:
        notes.append(
            f"experiment={own} is none of this version's: what it chose and set is taken from the run's folder"
        )
    planned = Planned(overrides, place, notes=notes)
    _use_own_manifest(before, planned)
    _put_back(before, planned)
    _use_as_many_threads(before, planned)
    return planned


def run_again(before: Recorded, planned: Planned, folder: Path) -> Recorded:
    """Run it in a folder, as a process of its own that says what it says here; returns the new run.

    Raises:
        UserError: it did not end well.
        Interrupted: it was told to stop.
    """
    line = [sys.executable, "-m", f"clipkit.{before.command}", *planned.overrides]
    line.append(f"hydra.run.dir={quoted(str(folder.absolute()))}")
    console.print(f"[bold]again[/bold]  {as_typed(before.folder)}  →  {as_typed(folder)}", soft_wrap=True)
    say(planned.notes)
    told: list[int] = []
    ended = run_child(line, told, folder=planned.place, environment={**os.environ, **planned.environment})
    status = status_of(ended)
    if told:
        raise Interrupted("stopped; nothing was compared", 128 + told[0])
    if status:
        why = (read_json(folder / "run.json") or {}).get("error") or f"exit status {status}"
        raise UserError(f"{before.folder} could not be repeated: {why}")
    return recorded(str(folder))


def _own_experiment(about: Mapping[str, Any]) -> str | None:
    """The experiment that a run has chosen, if this version has none of that name."""
    chosen: str | None = about.get("choices", {}).get("experiment")
    return None if chosen in groups()["experiment"] else chosen


def _known_here(about: Mapping[str, Any]) -> list[str]:
    """The command line; in the place of an experiment of the user's own (`--config-dir`) the options that it chose.

    Its values are put back as all others are.
    """
    overrides = [str(text) for text in about["overrides"]]
    if _own_experiment(about) is None:
        return overrides
    chosen = about["choices"]
    said = {key_of(text) for text in overrides} | {"experiment"}
    options = [f"{group}={option}" for group, option in chosen.items() if option is not None and group not in said]
    return [*options, *(text for text in overrides if key_of(text) != "experiment")]


def _use_own_manifest(before: Recorded, planned: Planned) -> None:
    """The manifest that a run was given may have changed; what it used lies in its folder."""
    own = before.folder / "manifest.json"
    for index, text in enumerate(planned.overrides):
        if key_of(text) == "data.manifest" and own.is_file():
            planned.overrides[index] = f"data.manifest={quoted(str(own))}"


def _put_back(before: Recorded, planned: Planned) -> None:
    """Values that this version gives otherwise become overrides: those of config.yaml decide."""
    for _ in range(ROUNDS):
        now = _composed(before.command, planned.overrides)
        changed = list(_changed(before.config, now))
        if not changed:
            break
        for key, value, other in changed:
            planned.put_back.setdefault(key, (value, other))
            new_keys = "++" if isinstance(value, dict) else ""
            planned.overrides.append(f"{new_keys}{key}={_as_value(value)}")
    then_keys, now_keys = (dict(_leaves(config)) for config in (before.config, now))
    planned.gone = [key for key in then_keys if key not in now_keys and not _belongs(key, UNCOMPARED)]
    planned.new = [key for key in now_keys if key not in then_keys and not _belongs(key, UNCOMPARED)]


def _changed(then: Mapping[Any, Any], now: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Of the keys that both have those with other values, as deep as both have mappings: key, then, now."""
    for name, value in then.items():
        key = f"{above}{name}"
        if name not in now or key == "data.manifest" or _belongs(key, UNCOMPARED):
            continue
        if isinstance(value, dict) and isinstance(now[name], dict) and now[name]:
            yield from _changed(value, now[name], f"{key}.")
        elif value != now[name]:
            yield key, value, now[name]


def _use_as_many_threads(before: Recorded, planned: Planned) -> None:
    """Threads decide how sums are rounded."""
    threads = (before.about.get("hardware") or {}).get("threads")
    asked = (before.config.get("trainer") or {}).get("threads")
    said = any(key_of(text) == "trainer.threads" for text in planned.overrides)
    if before.command == "train" and not said and isinstance(asked or threads, int):
        planned.overrides.append(f"trainer.threads={asked or threads}")
    if (
        asked is None and isinstance(threads, int) and before.about.get("processes", 1) == 1
    ):  # other libraries than torch
        planned.environment["OMP_NUM_THREADS"] = str(threads)


def _composed(command: str, overrides: list[str]) -> Mapping[str, Any]:
    """The configuration that a command line gives now, as a run writes it to config.yaml."""
    try:
        config = compose_config(command, overrides)
        if command == "train":
            build.resolve_stages(config, overrides)
        else:
            build.settle_retention_data(config)
            build.settle_templates(config)
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"its command line is none of this version: {reason}\n  {' '.join(overrides)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _leaves(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _belongs(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}@")) for name in names)


def _as_value(value: Any) -> str:
    """A value of config.yaml as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_as_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_as_value(inside)}" for key, inside in value.items()) + "}"
    return repr(value)
