"""What people ask about their pictures: the keys of `predict` and `search`, checked before anything is loaded."""

import glob
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from clipkit.data.label_list import label_file
from clipkit.runs.compose import is_missing

__all__ = ["as_list", "check_question", "choose_templates"]

BACKENDS = ("exact", "faiss")
PLACEHOLDERS = ("{}", "{label}")


def as_list(value: Any) -> list[Any]:
    """A value that may be one or several, or null, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]


def choose_templates(config: DictConfig) -> list[str] | None:
    """The sentences that labels are put into; None: the model's own."""
    return None if config.templates is None else [str(template) for template in as_list(config.templates)]


def check_question(config: DictConfig) -> list[str]:
    """What is wrong with the keys of `predict` and `search`; nothing for the other commands."""
    if "images" not in config or "action" in config:  # discover asks for itself
        return []
    problems = [] if is_missing(config, "images") else _places(config, "images", patterns=True)
    if "labels" in config:
        problems += _labels(config)
    if "query" in config:
        problems += _queries(config)
    for key in ("top", "batch_size"):
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"{key}={value}: a whole number from 1 is expected")
    return problems


def _places(config: DictConfig, key: str, *, patterns: bool) -> list[str]:
    places = as_list(config[key])
    if not places:
        return [f"{key} names nothing: {key}=…"]
    missing = [str(place) for place in places if not os.path.exists(os.path.expanduser(str(place)))]
    what = "file or folder" if patterns else "file"
    return [f"{key}={place}: no such {what}" for place in missing if not (patterns and glob.has_magic(place))]


def _labels(config: DictConfig) -> list[str]:
    labels, templates = config.labels, config.templates
    problems = []
    file = None if labels is None else label_file(as_list(labels))
    if file is not None and not file.is_file():
        problems.append(f"labels={file}: no such file")
    if templates is None:
        return problems
    if labels is None:
        problems.append('templates are sentences for labels, and none are given: labels="a cat,a dog"')
    if not isinstance(templates, str | ListConfig) or not len(templates):
        return [*problems, f'templates={templates}: a sentence with {{}} is expected, or several: templates=["{{}}"]']
    for template in as_list(templates):
        if not any(place in str(template) for place in PLACEHOLDERS):
            problems.append(f'templates: "{template}" has no {{}} for the label: "a photo of a {{}}"')
    return problems


def _queries(config: DictConfig) -> list[str]:
    problems = []
    texts, pictures = as_list(config.query), as_list(config.query_image)
    if not texts and not pictures:
        problems.append('a query is needed: query="one dog on the grass", or query_image=FILE')
    problems += [f"query: number {n} is empty" for n, text in enumerate(texts, 1) if not str(text or "").strip()]
    files = [str(text) for text in texts if os.path.splitext(str(text))[1] and os.path.isfile(str(text))]
    problems += [f"query={file} is a file: to search by a picture, query_image={file}" for file in files]
    for key, given in (("query", texts), ("query_image", pictures)):
        problems += [f"{key}: {value!r} is given twice" for value in _repeated(given)]
    if pictures:
        problems += _places(config, "query_image", patterns=False)
    if config.backend not in BACKENDS:
        near = get_close_matches(str(config.backend), BACKENDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        problems.append(f"backend={config.backend}: {hint}choose from {', '.join(BACKENDS)}")
    return problems


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value in values[:number]]
