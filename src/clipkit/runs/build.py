"""From the composed configuration to objects. The only caller of `hydra.utils.instantiate`.

Lightning and the towers' libraries take seconds to load: they are imported by the functions that need them.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from clipkit.data.index import indexed
from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.runs.choices import groups, read_option

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from clipkit.approaches.base import Approach, Stage
    from clipkit.data.datamodule import PairData
    from clipkit.models.dual_encoder import DualEncoder

__all__ = [
    "build_approach",
    "build_data",
    "build_encoder",
    "build_loggers",
    "build_records",
    "build_retention_data",
    "build_trainer",
    "resolve_stages",
    "settle_retention_data",
    "settle_templates",
    "training_captions",
]

NOT_FOR_TRAINER = (  # read by runs/
    "precision", "threads", "frozen_precision", "checkpoint_minutes", "checkpoint_steps", "devices", "processes",
    "gradient_checkpointing", "compile",
)  # fmt: skip
FOR_PEOPLE = ("needs", "provides", "streams")  # read by the command line's check, not by the classes
DEFAULTS = ("optimizer", "scheduler")
STREAMED_CAPTIONS = 50_000  # samples of a stream that a tokenizer is trained on


def resolve_stages(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write out each stage in full, in place.

    A stage's own YAML goes before the groups `optimizer`, `scheduler` and `data.batch_size`; what the command line
    says of those replaces it in every stage; `approach.stages.NAME.…` on the command line has the last word.
    """
    said = [o for o in map(_parsed, overrides) if not o.is_sweep_override()]
    groups_now = {group: OmegaConf.to_container(config[group], resolve=True) for group in DEFAULTS}
    with open_dict(config):
        for name, stage in config.approach.stages.items():
            given: Any = OmegaConf.to_container(stage)
            for group, base in groups_now.items():
                assert isinstance(base, dict)
                chosen = any(o.key_or_group.split("@")[0] == group for o in said)
                merged = _merged(base, {} if chosen else given.get(group) or {})
                if not chosen:
                    _apply(merged, said, f"{group}.")
                _apply(merged, said, f"approach.stages.{name}.{group}.")
                stage[group] = merged
            keys = {o.key_or_group for o in said}
            own_size = f"approach.stages.{name}.batch_size" in keys
            if not own_size and ("batch_size" not in stage or "data.batch_size" in keys):
                stage.batch_size = config.data.batch_size
            if config.debug_epochs is not None and stage.epochs > 0:
                stage.epochs, stage.least_steps = config.debug_epochs, 0
            if config.debug_batch_size is not None:
                stage.batch_size = min(stage.batch_size, config.debug_batch_size)


@lru_cache(maxsize=1024)
def _parsed(override: str) -> Override:
    """A sweep's trials say most of the same: an override takes a millisecond."""
    return OverridesParser.create().parse_override(override)


def _apply(target: dict[Any, Any], overrides: Sequence[Override], prefix: str) -> None:
    for override in overrides:
        if override.key_or_group.startswith(prefix):
            *above, last = override.key_or_group.removeprefix(prefix).split(".")
            node = target
            for key in above:
                node = node.setdefault(key, {})
            value: Any = override.value()
            both = isinstance(value, dict) and isinstance(node.get(last), dict)
            node[last] = _merged(node[last], value) if both else value


def _merged(base: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """A new mapping with what is in both, `own` before `base`, key by key at every depth."""
    merged = {key: _merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in own.items():
        before = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[key] = _merged(before, value) if both else value  # type: ignore[arg-type]  # both are
    return merged


def build_encoder(config: DictConfig) -> "DualEncoder":
    """The dual encoder of `config.backbone`."""
    from clipkit.models.dual_encoder import DualEncoder

    encoder = _instantiate(config.backbone)
    assert isinstance(encoder, DualEncoder)
    return encoder


def build_data(config: DictConfig, encoder: "DualEncoder") -> "PairData":
    """The data module of `config.data`, with the encoder's preprocessing and tokenizer."""
    return _data(config, encoder.preprocess, encoder.tokenize)


def build_records(config: DictConfig) -> Records:
    """The records of `config.data` as its reader gives them: no encoder, no templates."""
    if OmegaConf.select(config, "data.records") is None:
        raise UserError("this choice of data has no `records`: it is not a list of pictures that can be counted")
    node = OmegaConf.to_container(config.data.records, resolve=True)
    assert isinstance(node, dict)

    def read() -> Records:
        records = _instantiate(config.data.records)
        assert isinstance(records, Records)
        return records

    return indexed(read, key={str(name): value for name, value in node.items()}, folder=f"{config.cache_dir}/index")


def training_captions(config: DictConfig) -> list[str]:
    """Every training caption of `config.data`, templates filled in, once for each picture that has it; no encoder.

    Of a stream those of its first 50,000 samples.
    """
    from clipkit.data.streaming_datamodule import StreamData

    def not_needed(*_: Any) -> Any:
        raise AssertionError("captions need neither pixels nor tokens")

    data = _data(config, not_needed, not_needed)
    if isinstance(data, StreamData):
        found = data.first_captions(STREAMED_CAPTIONS)
    else:
        found = [caption for captions in data.split("train").table["captions"].to_pylist() for caption in captions]
    if not found:
        raise UserError(f"{data.records.name} has no training captions")
    return found


def build_approach(
    config: DictConfig, encoder: "DualEncoder", *, of_this_tower: bool = True
) -> tuple["Approach", list[str]]:
    """The approach of `config.approach`, and what was decided about its stages in the user's place.

    With `of_this_tower=False` it is not asked whether the encoder's towers have the groups that stages train.
    """
    from clipkit.approaches.base import Approach, Stage

    raw = OmegaConf.to_container(config.approach, resolve=True)
    assert isinstance(raw, dict)
    notes: list[str] = []
    stages = {}
    for name, stage in raw.pop("stages").items():
        _adapt_to_towers(name, stage, encoder, notes)
        stage["train"]["_target_"] = "clipkit.models.freezing.Trained"
        stages[name] = _instantiate(OmegaConf.create({"_target_": "clipkit.approaches.base.Stage", **stage}))
        assert isinstance(stages[name], Stage)
        if stages[name].epochs > 0 and of_this_tower:
            _check_groups(name, stages[name], encoder)
    make = _instantiate(OmegaConf.create({**raw, "_partial_": True}))
    approach = make(encoder=encoder, stages=stages)
    assert isinstance(approach, Approach)
    return approach, notes


def _check_groups(name: str, stage: "Stage", encoder: "DualEncoder") -> None:
    """What a later stage cannot train is said before the first one runs."""
    from clipkit.models.freezing import check

    try:
        check(encoder, stage.train)
    except UserError as error:
        raise UserError(f"approach.stages.{name}.train.{error}") from None


def _adapt_to_towers(name: str, stage: dict[str, Any], encoder: "DualEncoder", notes: list[str]) -> None:
    """Towers without pretrained weights are trained whole; a stage that would leave them frozen is skipped."""
    fresh = [
        kind for kind, tower in (("image", encoder.image), ("text", encoder.text)) if not _has_weights(tower, encoder)
    ]
    if not fresh or stage["epochs"] == 0:
        return
    if stage["train"].get("image_groups") == 0 and stage["train"].get("text_groups") == 0:
        stage["epochs"] = 0
        which = f"{' and '.join(fresh)} tower{'s have' if len(fresh) > 1 else ' has'}"
        notes.append(f"stage {name} is skipped: the {which} no pretrained weights to freeze")
        return
    for kind in fresh:
        stage["train"][f"{kind}_groups"] = "all"
        stage["train"]["depthwise"] = True
    which = f"{' and '.join(fresh)} {'towers whole: they start' if len(fresh) > 1 else 'tower whole: it starts'}"
    notes.append(f"stage {name} trains the {which} from scratch (groups and norms to train do not apply)")


def _has_weights(tower: Any, encoder: "DualEncoder") -> bool:
    return bool(tower.pretrained) or encoder.aligned


def build_trainer(config: DictConfig, **settings: Any) -> "pl.Trainer":
    """The Trainer of `config.trainer`, with the settings that a stage adds."""
    import pytorch_lightning as pl

    options = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(options, dict)
    plain = {str(key): value for key, value in options.items() if key not in NOT_FOR_TRAINER}
    trainer = _instantiate(OmegaConf.create({**plain, "_partial_": True}))(**{"devices": 1, **settings})
    assert isinstance(trainer, pl.Trainer)
    return trainer


def build_loggers(config: DictConfig) -> list[Any]:
    """The loggers that the configuration names, beside `metrics.csv`."""
    loggers = []
    for entry in config.logger.loggers:
        try:
            loggers.append(_instantiate(entry))
        except ModuleNotFoundError as error:
            raise UserError(
                f'logger: {error.name or error} is not installed: pip install "clipkit-train[tensorboard]"'
            ) from error
    return loggers


def _instantiate(node: Any) -> Any:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    for key in FOR_PEOPLE:
        plain.pop(key, None)
    try:
        return instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError | ModuleNotFoundError):
            raise cause from None  # Hydra's wrapping says nothing more to a person
        raise


def _data(config: DictConfig, preprocess: Any, tokenize: Any) -> "PairData":
    from clipkit.data.datamodule import PairData

    make = _instantiate(_constructor(config.data))
    data = make(build_records(config), preprocess=preprocess, tokenize=tokenize)
    assert isinstance(data, PairData)
    return data


def settle_retention_data(config: DictConfig) -> None:
    """Resolve `retention_data` in place: in the YAMLs of data sets `${data.root}` means the data set's own root."""
    if config.retention_data is not None:
        own = _as_data(config)
        with open_dict(config):
            config.retention_data = OmegaConf.to_container(own.data, resolve=True)


def settle_templates(config: DictConfig) -> None:
    """Put `templates` in the place of the data's own: a list, or the name of a data set whose YAML has some.

    Raises:
        UserError: there is no such data set, or it has no templates.
    """
    if config.templates is None:
        return
    chosen = config.templates
    if isinstance(chosen, str):
        known = {name: read_option("data", name).get("templates") for name in groups()["data"]}
        known = {name: templates for name, templates in known.items() if templates}
        if chosen not in known:
            raise UserError(
                f"templates={chosen}: a list of sentences with {{}}, or those of {', '.join(sorted(known))}"
            )
        chosen = known[chosen]
    if not len(chosen) or not all("{}" in str(text) or "{label}" in str(text) for text in chosen):
        raise UserError("templates: sentences with {} or {label} in the place of the class name are expected")
    with open_dict(config):
        config.data.templates = list(chosen)


def build_retention_data(config: DictConfig, encoder: "DualEncoder") -> "PairData":
    """The data module of `config.retention_data`, with the encoder's preprocessing and tokenizer."""
    return build_data(_as_data(config), encoder)


def _as_data(config: DictConfig) -> DictConfig:
    """The configuration with `retention_data` in the place of `data`."""
    own = config.copy()
    with open_dict(own):
        own.data = own.retention_data
    return own


def _constructor(data: DictConfig) -> DictConfig:
    """`data` without its `records` and the keys that only feed them by interpolation (root, file, columns)."""
    plain = OmegaConf.to_container(data, resolve=True)
    assert isinstance(plain, dict)
    known = inspect.signature(get_class(str(plain["_target_"]))).parameters
    used = {key: value for key, value in plain.items() if (key in known or key == "_target_") and key != "records"}
    return OmegaConf.create({**used, "_partial_": True})
