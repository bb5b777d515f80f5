"""Which choices cannot work together, read from the composed YAML alone: nothing is imported or loaded."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clipkit.runs.choices import NAMES_ELSEWHERE, named_backbones
from clipkit.runs.compose import is_missing, missing_keys

__all__ = ["check_combination"]

PATHS = ("data.root", "data.file", "data.manifest", "backbone.path", "base", "images")
WAYS_OUT = {
    "captions": "data=pairs or a data set with captions, or one with classes (templates make captions of them)",
    "labels": "data=folder, data=emoji, or data=pairs with data.label_column=COLUMN",
    "aligned": "backbone=emoji_clip, backbone=checkpoint backbone.path=MODEL (an own run), backbone=hf_clip, open_clip",
}


def check_combination(config: DictConfig) -> list[str]:
    """What cannot work about a composed configuration, read from the YAMLs alone."""
    problems = []
    makes = [*(OmegaConf.select(config, "makes") or [])]  # fetch: paths that need not be there yet
    nothing = bool(makes) and not OmegaConf.select(config, "data.fetch.files")
    for key in missing_keys(config):
        if key in makes and nothing:
            continue
        problems.append(f"{key} is needed: {key}=…")
    for key in PATHS:
        value = None if is_missing(config, key) else OmegaConf.select(config, key, default=None)
        named = key == "backbone.path" and value == "emoji_clip"
        if isinstance(value, str) and key not in makes and not named and not Path(value).expanduser().exists():
            problems.append(f"{key}={value}: no such file or folder")
    model = None if is_missing(config, "model") else OmegaConf.select(config, "model")
    named = model is None or str(model).startswith(NAMES_ELSEWHERE) or model in named_backbones()
    if not named and not Path(str(model)).exists():
        problems.append(
            f"model={model}: neither a model folder nor hf:NAME, open_clip:ARCH/TAG or a backbone "
            f"({', '.join(named_backbones())})"
        )
    if OmegaConf.select(config, "save.towers") == "pretrained":
        problems += _towers_that_must_be_saved(config)
    needs = list(OmegaConf.select(config, "approach.needs") or [])
    provides = [*(OmegaConf.select(config, "data.provides") or [])]
    fresh = OmegaConf.select(config, "backbone.pretrained") is False
    provides += [] if fresh else OmegaConf.select(config, "backbone.provides") or []
    if OmegaConf.select(config, "data.label_column") is not None:
        provides.append("labels")
    if "labels" in provides:
        provides.append("captions")  # by templates
    for need in needs:
        if need not in provides:
            problems.append(
                f"this approach needs {need}, which this choice of data and backbone has not: {WAYS_OUT[need]}"
            )
    problems += _pictures_and_captions(config, "labels" in provides)
    bank, targets = OmegaConf.select(config, "approach.text_bank"), OmegaConf.select(config, "approach.targets")
    if bank is True and targets != "multi_positive":
        problems.append(f"approach.text_bank=true needs approach.targets=multi_positive, not {targets}")
    share = OmegaConf.select(config, "data.max_broken")
    if isinstance(share, float | int) and not 0 <= share <= 1:
        problems.append(f"data.max_broken={share}: a share is expected, 0 … 1")
    return problems


def _pictures_and_captions(config: DictConfig, labelled: bool) -> list[str]:
    """Why `data.shots`, `data.manifest` or `data.captions` asks for more than the data set has."""
    shots, mode = OmegaConf.select(config, "data.shots"), OmegaConf.select(config, "data.captions")
    manifest = None if is_missing(config, "data.manifest") else OmegaConf.select(config, "data.manifest")
    asked = [f"data.shots={shots}"] * (shots is not None) + [f"data.manifest={manifest}"] * (manifest is not None)
    problems = []
    if OmegaConf.select(config, "data.streams"):
        problems += [
            f"{key} cannot work with a stream (data=webdataset), which has no list of pictures to choose from: leave "
            "it out, or use another data set"
            for key in asked
        ]
    elif shots is not None and not labelled:
        problems.append(
            f"data.shots={shots} draws pictures by class, and {_data_name(config)} has no labels: {WAYS_OUT['labels']}"
        )
    if isinstance(shots, int) and shots < 1:
        problems.append(f"data.shots={shots}: at least 1 picture a class is needed (null: all)")
    if mode in ("generated", "plain") and not labelled:
        problems.append(
            f"data.captions={mode} makes captions of class names, and {_data_name(config)} has no labels: "
            f"{WAYS_OUT['labels']}; or data.captions=random, all"
        )
    return problems


def _data_name(config: DictConfig) -> str:
    """The data set as its reader is called: what `data=` chose is not in the configuration."""
    target = OmegaConf.select(config, "data.records._target_") or OmegaConf.select(config, "data._target_")
    return f"data={str(target).rpartition('.')[2]}"


def _towers_that_must_be_saved(config: DictConfig) -> list[str]:
    """Why `save.towers=pretrained`, which leaves the towers out of `model/`, would lose them."""
    said = "save.towers=pretrained leaves the towers out of model/, but"
    if str(OmegaConf.select(config, "backbone._target_")).endswith("open_clip_model"):
        return [f"{said} those of open_clip are not found again by name: use save.towers=inside"]
    stages = OmegaConf.select(config, "approach.stages") or {}
    trained = [
        name
        for name, stage in stages.items()
        if stage.epochs and (stage.train.image_groups or stage.train.text_groups or stage.train.norms != "groups")
    ]
    return [f"{said} stage {name} trains them: use save.towers=inside" for name in trained]
