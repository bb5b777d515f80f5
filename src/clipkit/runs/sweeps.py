"""An experiment that is several runs: what it sweeps, and what its runs leave together.

Its YAML has `hydra.sweeper.params` (values by key, written as after `-m`), each of which the command line may replace,
and may name with `together` what is made of the runs: a key of `KINDS`.

Run: python -m clipkit.train -m experiment=few_shot_curve
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.choices import groups, read_option
from clipkit.runs.command_line import split_flags
from clipkit.runs.compose import output_folder

__all__ = ["Sweep", "Together", "key_of", "left_to_experiment", "left_to_sweep", "together"]

KINDS = {"few_shot_curve": "clipkit.runs.few_shot_curve:FewShotCurve", "grid": "clipkit.runs.grid_summary:Grid"}
LAUNCHER = ("hydra/launcher", "hydra.launcher.")  # decides no folder, and Hydra says what is wrong with it


@dataclass(frozen=True)
class Sweep:
    """A multirun as it was asked for.

    Args:
        command: the name of the primary configuration.
        flags: of the command line, `-m` among them.
        overrides: of the command line, as Hydra takes them.
        values: all values, as texts, of each key that the experiment sweeps or the command line has several of.
        folder: of the multirun.
    """

    command: str
    flags: Sequence[str]
    overrides: Sequence[str]
    values: dict[str, list[str]]
    folder: str


class Together(ABC):
    """What the runs of one multirun are together; raises a `UserError` where this sweep cannot be that."""

    @abstractmethod
    def __init__(self, sweep: Sweep) -> None: ...

    @abstractmethod
    def rounds(self) -> list[list[str]]:
        """The command lines that Hydra is to run, one multirun each, all in the sweep's folder."""

    @abstractmethod
    def close(self) -> None:
        """Called once after all rounds, whatever has failed in them."""

    @abstractmethod
    def how_to_continue(self) -> str:
        """The command that finishes the multirun once it has been stopped."""


def key_of(override: str) -> str:
    """The key that an override is about."""
    return override.partition("=")[0].lstrip("+~")


def left_to_experiment(overrides: Sequence[str], *, multirun: bool) -> list[str]:
    """What the chosen experiment sweeps and the command line does not say, as overrides.

    Raises:
        UserError: there is something, and no `-m`: a single run could not choose.
    """
    given = {key_of(text) for text in overrides}
    params = OmegaConf.select(_experiment(overrides), "hydra.sweeper.params") or {}
    left = [f"{key}={value}" for key, value in params.items() if key not in given]
    if left and not multirun:
        raise UserError(
            f"experiment={_chosen(overrides)} is several runs, of {' '.join(left)}: add -m to make them all, or say "
            f"for one run which ({', '.join(f'{key_of(text)}=…' for text in left)})"
        )
    return left


def left_to_sweep(overrides: Sequence[str], *, own: Sequence[str] = ()) -> list[str]:
    """What `base` of the chosen sweep says and the command line does not; without what is said of every stage.

    `own` are folders with options of the user's own.
    """
    chosen = next((text.partition("=")[2] for text in overrides if key_of(text) == "sweep"), None) or "few_shot"
    given = {key_of(text) for text in overrides}
    searched = {key.removeprefix("sweep.space.").removesuffix(".choices") for key in given}
    base = OmegaConf.select(read_option("sweep", chosen, more=own), "base") or []
    return [text for text in base if key_of(text) not in given | searched and "*" not in key_of(text)]


def together(command: str, arguments: Sequence[str]) -> Together | None:
    """What the runs of this multirun leave together: what its experiment says, else a table of them.

    None where it is not known what runs there will be: with configurations or a sweeper of the user's own.
    """
    flags, overrides = split_flags(arguments)
    kind = OmegaConf.select(_experiment(overrides), "together")
    if kind is None:
        if command != "train" or not _is_plain(flags, overrides):
            return None
        kind = "grid"
    parser = OverridesParser.create()
    values: dict[str, list[str]] = {}
    params = [key_of(text) for text in left_to_experiment([f"experiment={_chosen(overrides)}"], multirun=True)]
    for text in [*left_to_experiment(overrides, multirun=True), *overrides]:
        override = parser.parse_override(text)
        if override.is_sweep_override():
            values[override.key_or_group] = [str(value) for value in override.sweep_string_iterator()]
        elif override.key_or_group in params:
            values[override.key_or_group] = [str(override.get_value_element_as_str())]
    single = [text for text in overrides if key_of(text) not in values and not key_of(text).startswith(LAUNCHER)]
    firsts = [f"{key}={several[0]}" for key, several in values.items()]
    folder = output_folder(command, [*single, *firsts], multirun=True)
    module, _, name = KINDS[kind].partition(":")
    made: Together = getattr(import_module(module), name)(Sweep(command, flags, overrides, values, folder))
    return made


def _is_plain(flags: Sequence[str], overrides: Sequence[str]) -> bool:
    """Whether Hydra's own sweeper makes all combinations, in one folder."""
    own = [text for text in overrides if key_of(text) == "hydra/sweeper" or text.startswith("hydra.sweeper.")]
    own += [text for text in overrides if key_of(text) == "hydra.sweep.dir" and "${" in text]
    own += [text for text in overrides if OverridesParser.create().parse_override(text).is_interval_sweep()]
    return not own and all(flag in ("-m", "--multirun") for flag in flags)


def _chosen(overrides: Sequence[str]) -> str | None:
    return next((text.partition("=")[2] for text in overrides if key_of(text) == "experiment"), None)


def _experiment(overrides: Sequence[str]) -> Any:
    """The YAML of the chosen experiment; empty for none, or an unknown one, which the check will name."""
    chosen = _chosen(overrides)
    return read_option("experiment", chosen) if chosen in groups()["experiment"] else OmegaConf.create()
