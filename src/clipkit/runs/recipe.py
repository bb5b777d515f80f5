"""What decides a run's result: which keys may differ where it is resumed, and what repetitions of it share.

Used by: clipkit.runs.record, clipkit.runs.study.heads, clipkit.leaderboard

Nothing heavy is imported here: who only reads what runs have left need not wait for it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MAY_CHANGE", "SEEDS", "flat", "may_change", "recipe_of"]

MAY_CHANGE = (
    "resume",
    "overwrite",
    "run_dir",
    "name",
    "logger",
    "report",
    "evaluators",
    "cache_dir",
    "data.cache_dir",
    "data.workers",
    "data.fetch",
    "trainer.checkpoint_minutes",
    "trainer.checkpoint_steps",
    "sweep.trials",
    "sweep.processes",
    "sweep.minutes",
    "sweep.wait",
)
SEEDS = ("seed", "data.seed", "data.split_seed")


def recipe_of(config: Mapping[Any, Any]) -> str:
    """16 hex digits of what decides a run's result besides its seeds: runs that differ in these alone share it."""
    deciding = {
        key: value
        for key, value in flat(config)
        if key not in SEEDS and key != "trainer.threads" and not may_change(key)
    }
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def may_change(key: str) -> bool:
    """Whether a key decides nothing about the result."""
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, by its dotted key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
