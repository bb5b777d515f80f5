"""Every option of every group composes, and every approach × data pair has its verdict."""

from itertools import product
from typing import Any

import pytest
from omegaconf import OmegaConf

from clipkit.runs.choices import groups, read_option
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from clipkit.runs.signatures import _locate

OPTIONS = [(group, option) for group, options in groups().items() for option in options]
ROOTS = {"data.root": "data.root=.", "data.file": "data.file=pyproject.toml"}


def compose_option(group: str, option: str) -> Any:
    extra = [] if group != "backbone/projection" else ["backbone=lite0_minilm"]
    return compose_config("sweep" if group == "sweep" else "train", [*extra, f"{group}={option}"])


def targets(config: Any) -> list[str]:
    """Every `_target_` in a configuration, wherever it stands."""
    if isinstance(config, dict):
        own = [config["_target_"]] if "_target_" in config else []
        return own + [name for value in config.values() for name in targets(value)]
    return [name for value in config for name in targets(value)] if isinstance(config, list) else []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_names_classes_that_exist(group: str, option: str) -> None:
    config = OmegaConf.to_container(compose_option(group, option), resolve=False)
    named = targets(config)
    assert named
    missing = [name for name in named if _locate(name) is None]
    assert missing == [] or missing == ["pytorch_lightning.loggers.WandbLogger"]


@pytest.mark.parametrize(("approach", "data"), product(groups()["approach"], groups()["data"]))
def test_every_pair_of_approach_and_data_is_allowed_or_refused(approach: str, data: str) -> None:
    """Refused exactly where the approach needs what the data, and templates from its labels, do not provide."""
    paths = [text for key, text in ROOTS.items() if key.split(".")[1] in list(read_option("data", data).keys())]
    config = compose_config("train", [f"approach={approach}", f"data={data}", "backbone=emoji_clip", *paths])
    needs = set(config.approach.needs) - {"aligned"}
    provides = set(read_option("data", data).provides)
    provides |= {"captions"} if "labels" in provides else set()
    assert bool(check_combination(config)) == bool(needs - provides)


def test_the_verdicts_known_today() -> None:
    """The table as a person would write it, so that a change of `needs` or `provides` is noticed."""
    refused = set()
    for approach, data in product(groups()["approach"], groups()["data"]):
        paths = [text for key, text in ROOTS.items() if key.split(".")[1] in list(read_option("data", data).keys())]
        config = compose_config("train", [f"approach={approach}", f"data={data}", "backbone=emoji_clip", *paths])
        if check_combination(config):
            refused.add((approach, data))
    unlabelled = ("pairs", "coco", "flickr8k", "flickr30k", "webdataset")
    learn_classes = [approach for approach in groups()["approach"] if approach != "contrastive"]
    assert refused == set(product(learn_classes, unlabelled))


def test_a_label_column_makes_pairs_a_labelled_data_set() -> None:
    overrides = [
        "approach=zero_shot",
        "data=pairs",
        "backbone=emoji_clip",
        ROOTS["data.file"],
        "data.label_column=kind",
    ]
    assert check_combination(compose_config("train", overrides)) == []
