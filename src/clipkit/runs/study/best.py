"""The configuration of a trial as an option of the group `experiment`, ready to be run again or built upon.

Used by: clipkit.sweep
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.build import resolve_stages
from clipkit.runs.choices import group_of
from clipkit.runs.command_line import unquoted
from clipkit.runs.compose import compose_config
from clipkit.runs.recipe import flat
from clipkit.runs.sweeps import key_of

__all__ = ["write_experiment"]

GROUPS = ("approach", "backbone", "data", "optimizer", "scheduler")
NOT_KEPT = ("run_dir", "name", "resume", "overwrite", "report", "cache_dir", "logger", "seed")


def write_experiment(
    path: Path,
    *,
    config: Mapping[str, Any],
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    headline: Sequence[str],
) -> None:
    """Write `experiment/NAME.yaml`: the options of groups, and every key whose value they do not give by themselves.

    Stages are compared as they are once resolved, so that what the command line has said of all of them is kept.

    Args:
        path: of the file.
        config: the trial's, resolved.
        choices: its options of groups.
        overrides: its command line.
        headline: comment lines.

    Raises:
        UserError: it cannot be written.
    """
    groups = {group: str(choices[group]) for group in GROUPS if choices.get(group) is not None}
    for text in overrides:
        group, _, option = unquoted(text).partition("=")
        if group_of(key_of(text)) is not None and "/" in group:  # one tower of a pair
            groups[group] = option
    plain = compose_config("train", [f"{group}={option}" for group, option in groups.items()])
    resolve_stages(plain, [])
    given = OmegaConf.to_container(plain, resolve=True)
    assert isinstance(given, dict)
    before = dict(flat(given))
    keys: Any = OmegaConf.create({})
    for key, value in flat(config):
        if key.split(".")[0] not in NOT_KEPT and not (key in before and before[key] == value):
            OmegaConf.update(keys, key, value, force_add=True)
    defaults = [{f"override /{group}": option} for group, option in groups.items()]
    body = {"defaults": [*defaults, "_self_"], **OmegaConf.to_container(keys)}  # type: ignore[dict-item]  # a mapping
    comments = "\n".join(f"# {line}" for line in headline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{comments}\n{yaml.safe_dump(body, sort_keys=False, allow_unicode=True)}")
    except OSError as error:
        raise UserError(f"{path} could not be written: {error}") from error
