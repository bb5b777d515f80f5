"""What a manifest's JSON must look like."""

from typing import Any

from clipkit.data.records import SPLITS

__all__ = ["wrong_form"]

SHOWN = 5  # unknown names in a message


def wrong_form(content: Any) -> str:
    """What is missing or of another kind; empty if nothing is."""
    if not isinstance(content, dict):
        return "it holds no JSON object"
    kinds = {"data": str, "shots": int | None, "split_seed": int, "class_names": list, "splits": dict}
    for key, kind in kinds.items():
        if key not in content:
            return f'"{key}" is missing'
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            return f'"{key}" is {content[key]!r:.40}'
    for key in ("splits", "added"):
        problem = _wrong_pictures(key, content.get(key, {}))
        if problem:
            return problem
    return "" if all(isinstance(name, str) for name in content["class_names"]) else '"class_names" holds no names'


def _wrong_pictures(key: str, splits: Any) -> str:
    """What is wrong with names by split and class; empty if nothing is."""
    if not isinstance(splits, dict):
        return f'"{key}" is {splits!r:.40}'
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        return f'"{key}" has {", ".join(unknown[:SHOWN])}; known are {", ".join(SPLITS)}'
    for split, by_class in splits.items():
        if not isinstance(by_class, dict):
            return f'"{split}" does not list pictures by class'
        for label, names in by_class.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return f'"{label}" in "{split}" is no list of names'
    return ""
