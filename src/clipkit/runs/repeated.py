"""What differs between a run and its repetition: the numbers, and what is around them.

Used by: clipkit.repeat
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.runs.record import read_json
from clipkit.runs.repeating import Planned, Recorded

__all__ = ["Comparison", "compare"]

SHOWN = 6  # keys named in one line


@dataclass(frozen=True)
class Comparison:
    """A run beside its repetition.

    Args:
        count: metrics compared.
        differences: by name, the number then and now; None where there is none.
        surroundings: what else is not as it was, a line each.
    """

    before: Path
    count: int
    differences: Mapping[str, tuple[float | None, float | None]]
    surroundings: list[str]

    def about(self) -> dict[str, Any]:
        """For `run.json`."""
        differences = {name: list(pair) for name, pair in self.differences.items()}
        return {"compared": self.count, "differences": differences, "surroundings": self.surroundings}


def compare(before: Recorded, again: Recorded, planned: Planned) -> Comparison:
    """Every number of both, to the bit."""
    names = list(dict.fromkeys([*before.metrics, *again.metrics]))
    pairs = {name: (before.metrics.get(name), again.metrics.get(name)) for name in names}
    differences = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return Comparison(before.folder, len(names), differences, _surroundings(before, again, planned))


def _surroundings(before: Recorded, again: Recorded, planned: Planned) -> list[str]:
    then, now = _flat(before.about), _flat(again.about)
    lines = [
        f"{name}: {then.get(name)} → {now.get(name)}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]
    for key, (value, other) in planned.put_back.items():
        lines.append(f"{key}: this version's value is {other}; it was run with {value}, as then")
    if planned.gone:
        lines.append(f"keys that this version has no longer: {_few(planned.gone)}")
    if planned.new:
        lines.append(f"keys that were not there then: {_few(planned.new)}")
    own, new = (read_json(run.folder / "manifest.json") or {} for run in (before, again))
    if own.get("fingerprint") != new.get("fingerprint"):
        lines.append(f"the pictures of the splits (manifest.json): {own.get('counts')} → {new.get('counts')}")
    return lines


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of code, libraries, machine, data and processes."""
    found = {name: about.get(name) for name in ("git_commit", "python", "processes")}
    found["packed"] = about.get("packed") or "none"
    for group in ("versions", "hardware", "data"):
        part = about.get(group)
        found |= {f"{group} · {name}": value for name, value in part.items()} if isinstance(part, dict) else {}
    return found


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
