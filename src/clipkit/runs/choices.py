"""What the configuration tree offers: its groups and their options, read from the YAML files themselves."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

__all__ = [
    "NAMES_ELSEWHERE",
    "conf_root",
    "folders_of_ones_own",
    "group_of",
    "groups",
    "named_backbones",
    "read_option",
    "second_places",
]

HIDDEN = ("shared",)
NEED_MORE = ("checkpoint", "hf_clip", "open_clip")  # backbones that their name alone does not make
NAMES_ELSEWHERE = ("hf:", "open_clip:")  # how a model of another library is named


def conf_root() -> Path:
    """The folder of the configuration tree (`conf/` of a checkout, or of the installed package)."""
    return Path(str(files("clipkit.conf")))


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Option names by group; nested groups are written "backbone/projection"."""
    root = conf_root()
    found: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*.yaml")):
        group = file.parent.relative_to(root).as_posix()
        if group != "." and group.split("/")[0] not in HIDDEN:
            found.setdefault(group, []).append(file.stem)
    return {group: tuple(options) for group, options in found.items()}


def group_of(key: str) -> str | None:
    """The group that an override's key names ("optimizer@_global_.optimizer" too), or None."""
    group = key.split("@")[0]
    return group if group in groups() else None


def read_option(group: str, option: str, *, more: Sequence[str | Path] = ()) -> Any:
    """The YAML of one option, uncomposed; of one that is in none of the folders (`more`: of the user's own) nothing."""
    places = (Path(folder) / group / f"{option}.yaml" for folder in (*more, conf_root()))
    return next((OmegaConf.load(place) for place in places if place.is_file()), OmegaConf.create())


def folders_of_ones_own() -> list[str]:
    """What `--config-dir` has named for the job that is running: a folder of further options."""
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [str(source.path) for source in sources if source.provider == "command-line"]


def named_backbones() -> tuple[str, ...]:
    """Backbones that can stand where a model is asked for."""
    return tuple(option for option in groups()["backbone"] if option not in NEED_MORE)


@cache
def second_places(command: str) -> dict[str, str]:
    """The keys of a command that take an option of a group once more, each with its group: retention_data, of data."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(conf_root() / f"{command}.yaml"))["defaults"]  # type: ignore[index,call-overload]  # a mapping
    keys = [key.lstrip("/").partition("@") for entry in defaults if isinstance(entry, dict) for key in entry]
    return {place: group for group, _, place in keys if place and not place.startswith("_")}
