"""Composing a command's configuration without running it, and finding one's way in it."""

from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

__all__ = ["all_keys", "compose_config", "is_missing", "missing_keys", "output_folder", "parent_of"]


def compose_config(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command, composed without running it."""
    from hydra.core.global_hydra import GlobalHydra

    state = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("clipkit.conf", version_base="1.3"):
            return compose(command, overrides=list(overrides))
    finally:
        if state is not None:
            GlobalHydra.instance().hydra = state


def output_folder(command: str, overrides: Sequence[str], *, multirun: bool = False) -> str:
    """The folder that Hydra would make for this command line now; of a multirun the one with all its jobs."""
    from hydra.core.hydra_config import HydraConfig

    with initialize_config_module("clipkit.conf", version_base="1.3"):
        config = compose(command, overrides=list(overrides), return_hydra_config=True)
        holder = HydraConfig.instance()
        before = holder.cfg
        holder.set_config(config)
        try:
            return str(config.hydra.sweep.dir if multirun else config.hydra.run.dir)
        finally:
            holder.cfg = before


def parent_of(config: DictConfig, key: str) -> tuple[Any, str]:
    """The node that holds a dotted key, and the key's last part."""
    above, _, last = key.rpartition(".")
    return (OmegaConf.select(config, above) if above else config), last


def missing_keys(config: DictConfig) -> list[str]:
    """Keys whose value is `???`."""
    return [key for key in all_keys(config) if is_missing(config, key)]


def is_missing(config: DictConfig, key: str) -> bool:
    """Whether a key's value is `???`."""
    parent, last = parent_of(config, key)
    return isinstance(parent, DictConfig) and OmegaConf.is_missing(parent, last)


def all_keys(config: Any, prefix: str = "") -> Iterable[str]:
    """Every dotted key of a configuration."""
    for key in config:
        name = f"{prefix}{key}"
        yield name
        if (
            isinstance(key, str)
            and not OmegaConf.is_missing(config, key)
            and not OmegaConf.is_interpolation(config, key)
        ):
            value = config._get_node(key)
            if isinstance(value, DictConfig) and not value._is_none():
                yield from all_keys(value, f"{name}.")
