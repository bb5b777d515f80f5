"""Which keys of `discover` an action needs, checked before anything is loaded."""

import glob
import os
from difflib import get_close_matches
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clipkit.runs.asking import as_list

__all__ = ["ACTIONS", "RANK_AVERAGE", "check_discovery"]

ACTIONS = ("evaluate", "fit", "score", "cluster", "accept")
NEEDS = {
    "score": {"fitted": "the folder that action=fit left", "images": "the pictures to score"},
    "accept": {
        "store": "the store whose cluster it is",
        "cluster": "the number of the cluster, as the last clustering gave it",
        "label": "the name of the class that it becomes",
    },
}
DETECTORS = ("lof", "knn", "mahalanobis", "isolation_forest", "mcm", "max_logit", "energy")
RANK_AVERAGE = "rank_average"
CHOICES = {
    "classifier": ("few_shot", "zero_shot", "own"),
    "refit": ("auto", True, False),
    "clustering.linkage": ("ward", "average"),
    "clustering.estimate": ("silhouette", "calinski_harabasz", "davies_bouldin"),
}


def check_discovery(config: DictConfig) -> list[str]:
    """What is wrong with the keys of `discover`; nothing for the other commands."""
    if "fitted" not in config:
        return []
    problems = [_not_among("action", config.action, ACTIONS)]
    problems += [_not_among(key, OmegaConf.select(config, key), choices) for key, choices in CHOICES.items()]
    asked = as_list(config.detectors)
    problems += [_not_among("detectors", name, (*DETECTORS, RANK_AVERAGE)) for name in asked]
    problems.append(_not_among("detector", config.detector, (*DETECTORS, RANK_AVERAGE)))
    for key, what in NEEDS.get(config.action, {}).items():
        if config[key] is None or (key == "images" and not as_list(config[key])):
            problems.append(f"{key} is needed for action={config.action}: {key}=… ({what})")
    if asked == [] and config.detectors is not None:
        problems.append("detectors=[] names none (null: all)")
    if config.action == "accept" and config.fitted is None and config.manifest is None:
        problems.append("fitted or manifest is needed for action=accept: whose manifest.json is to be extended")
    if config.action == "cluster" and config.store is not None and config.fitted is None:
        problems.append("fitted is needed to cluster a store: fitted=… (the folder whose detectors have filled it)")
    problems += _numbers(config)
    if config.action == "cluster" and config.images is None and config.store is None:
        problems.append("images or store is needed for action=cluster: images=DIR, or store=DIR with scored pictures")
    for place in as_list(config.images):
        if not os.path.exists(os.path.expanduser(str(place))) and not glob.has_magic(str(place)):
            problems.append(f"images={place}: no such file or folder")
    for key in ("fitted", "vocabulary", "manifest", *(("store",) if config.action in ("cluster", "accept") else ())):
        if config[key] is not None and not Path(str(config[key])).expanduser().exists():
            problems.append(f"{key}={config[key]}: no such file or folder")
    if config.store is not None and Path(str(config.store)).expanduser().is_file():
        problems.append(f"store={config.store} is a file, and a folder is expected")
    for key in ("false_alarms", "withhold"):
        if not isinstance(config[key], int | float) or not 0 < config[key] < 1:
            problems.append(f"{key}={config[key]}: a share above 0 and below 1 is expected")
    for key in ("splits", "every", "batch_size"):
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            problems.append(f"{key}={config[key]}: a whole number from 1 is expected")
    return [problem for problem in problems if problem]


def _numbers(config: DictConfig) -> list[str]:
    """What is wrong with numbers that may be null."""
    problems = []
    for key, least in {"clustering.number": 1, "clustering.most": 2, "clustering.neighbours": 1, "cluster": 0}.items():
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            problems.append(f"{key}={value}: a whole number from {least} is expected")
    distance = config.clustering.distance
    if distance is not None and (not isinstance(distance, int | float) or isinstance(distance, bool) or distance <= 0):
        problems.append(f"clustering.distance={distance}: a number above 0 is expected")
    if distance is not None and config.clustering.number is not None:
        problems.append("clustering.number and clustering.distance each say where the tree is cut: give one of them")
    return problems


def _not_among(key: str, value: object, choices: tuple[object, ...]) -> str:
    """What to say where a value is none of the choices; nothing where it is."""
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return ""
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    listed = ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)
    return f"{key}={value}: {hint}choose from {listed}"
