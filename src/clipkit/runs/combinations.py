"""Which choices cannot work together, read from the composed YAML alone: nothing is imported or loaded."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from clipkit.runs.asking import check_question
from clipkit.runs.choices import NAMES_ELSEWHERE, groups, named_backbones, read_option
from clipkit.runs.compose import is_missing, missing_keys
from clipkit.runs.discover_keys import check_discovery

__all__ = ["check_combination"]

PATHS = (
    "data.root", "data.file", "data.manifest", "backbone.path",
    "retention_data.root", "retention_data.file", "retention_data.manifest", "association.file",
)  # fmt: skip
SHARDS = ("data.val_root", "data.test_root", "retention_data.val_root", "retention_data.test_root")
MODELS = ("model", "base")
WAYS_OUT = {
    "captions": "data=pairs or a data set with captions, or one with classes (templates make captions of them)",
    "aligned": "backbone=emoji_clip, backbone=checkpoint backbone.path=MODEL (an own run), backbone=hf_clip, open_clip",
}


def ways_out(need: str) -> str:
    """The choices that provide what is needed."""
    if need != "labels":
        return WAYS_OUT[need]
    labelled = [name for name in groups()["data"] if "labels" in (read_option("data", name).get("provides") or [])]
    first_your_own = sorted(labelled, key=lambda name: name != "folder")
    return f"data={', '.join(first_your_own)}, or data=pairs with data.label_column=COLUMN"


def check_combination(config: DictConfig) -> list[str]:
    """What cannot work about a composed configuration, read from the YAMLs alone."""
    problems = []
    makes = [*(OmegaConf.select(config, "makes") or [])]  # fetch: paths that need not be there yet
    nothing = bool(makes) and not OmegaConf.select(config, "data.fetch.files")
    streams = bool(OmegaConf.select(config, "data.streams"))
    if streams:
        problems += _beyond_streams(config)
    for key in missing_keys(config):
        if key in makes and nothing:
            continue
        problems.append(f"{key} is needed: {key}=…")
    for key in (*PATHS, *SHARDS):
        value = None if is_missing(config, key) else OmegaConf.select(config, key, default=None)
        shards = bool(OmegaConf.select(config, f"{key.split('.')[0]}.streams")) and _names_shards(value)
        named = shards or (key == "backbone.path" and value == "emoji_clip")
        if isinstance(value, str) and key not in makes and not named and not Path(value).expanduser().exists():
            problems.append(f"{key}={value}: no such file or folder")
    for key in MODELS:
        value = None if is_missing(config, key) else OmegaConf.select(config, key)
        if isinstance(value, ListConfig) and (key != "model" or "evaluators" not in config):
            problems.append(f"{key}: one model is expected, not a list")
            continue
        for model in value if isinstance(value, ListConfig) else [] if value is None else [value]:
            named = str(model).startswith(NAMES_ELSEWHERE) or model in named_backbones()
            if not named and not Path(str(model)).exists():
                problems.append(
                    f"{key}={model}: neither a model folder nor hf:NAME, open_clip:ARCH/TAG or a backbone "
                    f"({', '.join(named_backbones())})"
                )
    problems += check_question(config)
    problems += check_discovery(config)
    problems += _between_two_models(config)
    problems += _association(config)
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
    if OmegaConf.select(config, "approach.init") == "random":
        needs = [need for need in needs if need != "aligned"]
    for need in needs:
        if need not in provides:
            problems.append(
                f"this approach needs {need}, which this choice of data and backbone has not: {ways_out(need)}"
            )
    problems += _pictures_and_captions(config, "labels" in provides)
    bank, targets = OmegaConf.select(config, "approach.text_bank"), OmegaConf.select(config, "approach.targets")
    if bank is True and targets != "multi_positive":
        problems.append(f"approach.text_bank=true needs approach.targets=multi_positive, not {targets}")
    share = OmegaConf.select(config, "data.max_broken")
    if isinstance(share, float | int) and not 0 <= share <= 1:
        problems.append(f"data.max_broken={share}: a share is expected, 0 … 1")
    return problems


def _between_two_models(config: DictConfig) -> list[str]:
    """What the evaluator wise_ft, and the keys that are for it alone, cannot do."""
    asked = "wise_ft" in (OmegaConf.select(config, "evaluators") or [])
    if asked and OmegaConf.select(config, "approach") is not None:
        return ["evaluators: wise_ft is about a finished run: clipkit.evaluate model=RUN evaluators=[wise_ft]"]
    keys = [key for key in ("base", "retention_data") if OmegaConf.select(config, key) is not None]
    problems = [] if asked else [f"{key} is for evaluators=[wise_ft], which is not asked here" for key in keys]
    retention = OmegaConf.select(config, "retention_data")
    if retention is not None and "labels" not in retention.provides and retention.get("label_column") is None:
        ways = ways_out("labels").replace("data=", "retention_data=").replace("data.", "retention_data.")
        problems.append(f"this retention_data has no labels to tell classes by: {ways}")
    return problems


def _association(config: DictConfig) -> list[str]:
    """What the evaluator association lacks, and its keys where it is not asked."""
    evaluators = OmegaConf.select(config, "evaluators") or []
    asked, family = "association" in evaluators, "robustness" in evaluators
    file, labels = (OmegaConf.select(config, f"association.{key}") for key in ("file", "labels"))
    if OmegaConf.select(config, "approach") is not None:
        hint = "clipkit.evaluate model=RUN evaluators=[association]"
        return [f"evaluators: association is about pictures of its own: {hint}"] if asked else []
    if not asked and not family:
        keys = [key for key, value in (("file", file), ("labels", labels)) if value is not None]
        return [f"association.{key} is for evaluators=[association], which is not asked here" for key in keys]
    problems = []
    if file is None and (asked or labels is not None):
        problems.append("association.file is needed: association.file=LIST.csv, with the columns image,group")
    if labels is None and (asked or file is not None):
        problems.append('association.labels is needed: association.labels="a doctor, a nurse"')
    elif labels is not None and (isinstance(labels, str) or len(labels) < 2):
        problems.append(f'association.labels={labels}: two or more are needed: association.labels="a doctor, a nurse"')
    return problems


def _pictures_and_captions(config: DictConfig, labelled: bool) -> list[str]:
    """Why `data.shots`, `data.withhold` or `data.captions` asks for more than the data set has."""
    shots, mode = OmegaConf.select(config, "data.shots"), OmegaConf.select(config, "data.captions")
    problems = []
    streams = bool(OmegaConf.select(config, "data.streams"))  # refused by name elsewhere
    if shots is not None and not streams and not labelled:
        problems.append(
            f"data.shots={shots} draws pictures by class, and {_data_name(config)} has no labels: {ways_out('labels')}"
        )
    if isinstance(shots, int) and shots < 1:
        problems.append(f"data.shots={shots}: at least 1 picture a class is needed (null: all)")
    withheld = OmegaConf.select(config, "data.withhold")
    if withheld is not None and not streams and not labelled:
        problems.append(
            f"data.withhold={withheld} leaves out classes, and {_data_name(config)} has no labels: {ways_out('labels')}"
        )
    if mode in ("generated", "plain") and not labelled:
        problems.append(
            f"data.captions={mode} makes captions of class names, and {_data_name(config)} has no labels: "
            f"{ways_out('labels')}; or data.captions=random, all"
        )
    return problems


def _data_name(config: DictConfig) -> str:
    """The data set as its reader is called: what `data=` chose is not in the configuration."""
    target = OmegaConf.select(config, "data.records._target_") or OmegaConf.select(config, "data._target_")
    return f"data={str(target).rpartition('.')[2]}"


def _names_shards(value: object) -> bool:
    """Whether a path is a pattern, a list or a URL, which only the reader of shards can follow."""
    return isinstance(value, str) and ("://" in value or "{" in value or value.startswith(("@", "pipe:")))


def _beyond_streams(config: DictConfig) -> list[str]:
    """What a stream, which has no table of its training pictures, cannot do."""
    problems = []
    root = OmegaConf.select(config, "data.root")
    trains = OmegaConf.select(config, "approach") is not None
    if trains and root is None:
        problems.append("data.root is needed: the shards to train on, data.root=…")
    if trains and "://" in str(root) and OmegaConf.select(config, "data.epoch_size") is None:
        problems.append("shards behind a URL are not counted: say how many samples an epoch has, data.epoch_size=…")
    for key in ("limit", "shots", "manifest", "withhold"):
        if OmegaConf.select(config, f"data.{key}") is not None:
            problems.append(
                f"data.{key} needs a table of the training pictures, and this data set is a stream of shards; "
                "data.epoch_size=… sets how many samples an epoch has"
            )
    if OmegaConf.select(config, "approach.text_bank") is True:
        problems.append("approach.text_bank=true needs a table of captions, and this data set is a stream of shards")
    plateau = str(OmegaConf.select(config, "scheduler._target_")).endswith("Plateau")
    if trains and plateau and OmegaConf.select(config, "data.val_root") is None:
        problems.append("scheduler=plateau waits for a validation score: give data.val_root=…, or another scheduler")
    return problems


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
