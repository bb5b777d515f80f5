"""A sweep as it was asked for: what is fixed, what is searched, and what judges a trial.

Used by: clipkit.sweep
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from clipkit.errors import UserError
from clipkit.runs.build import build_approach, build_encoder, resolve_stages
from clipkit.runs.choices import group_of, groups, read_option
from clipkit.runs.command_line import quoted
from clipkit.runs.compose import all_keys, compose_config
from clipkit.runs.study.space import Parameter, Value, read_space
from clipkit.runs.sweeps import key_of
from clipkit.runs.validate import check_command_line

__all__ = ["Objective", "Plan", "read_plan", "suits_heads", "written"]

SMALLER = ("loss", "rank", "error", "seconds", "weights")  # how the names end of what is to be minimized
OF_THE_SWEEP = ("sweep", "name", "resume", "overwrite", "report", "logger")
SHARED = ("classifying", "contrastive_finetune")  # what several approaches have
GROUPS_OF_STAGES = ("optimizer", "scheduler")
TRIED = 8  # combinations whose values are tried
COMBINATIONS = 64  # of groups' options that are looked at before anything runs


@dataclass(frozen=True)
class Objective:
    """A metric of a trial, and whether more of it is better."""

    metric: str
    maximize: bool

    @classmethod
    def read(cls, text: str) -> "Objective":
        """A metric's name; `minimize NAME` or `maximize NAME` where the name would not say it right."""
        way, _, rest = str(text).strip().partition(" ")
        if rest and way not in ("minimize", "maximize"):
            raise UserError(f"sweep.objectives: {text!r} is no metric; to say the direction: maximize {rest}")
        metric = rest.strip() or way
        return cls(metric, not metric.endswith(SMALLER) if not rest else way == "maximize")

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna calls it."""
        return "maximize" if self.maximize else "minimize"


@dataclass(frozen=True)
class Plan:
    """What all trials share.

    Args:
        base: overrides of `clipkit.train` that every trial begins with.
        parameters: what differs.
        objectives: what judges, one or more.
        logging: overrides for trials that are runs, which only say where their numbers go.
    """

    base: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    objectives: tuple[Objective, ...]
    logging: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> list[Parameter]:
        """The parameters that choose a group's option; they are drawn first, because they decide which others exist."""
        return [one for one in self.parameters if group_of(one.key) is not None]

    @cached_property
    def _configs(self) -> dict[tuple[str, ...], DictConfig]:
        return {}

    @cached_property
    def _resolved(self) -> dict[tuple[str, ...], DictConfig]:
        return {}

    def config(self, chosen: Sequence[str]) -> DictConfig:
        """The training configuration of these options of groups, before any other parameter. Not to be changed."""
        key = tuple(chosen)
        if key not in self._configs:
            self._configs[key] = compose_config("train", [*self.plain_base, *key])
        return self._configs[key]

    def tried(self, chosen: Sequence[str], turn: int) -> list[str]:
        """The command line of a trial with these options of groups, and each parameter at its end number `turn`."""
        params = {one.key: one.ends[min(turn, len(one.ends) - 1)] for one in self.parameters if one not in self.groups}
        return [*self.plain_base, *chosen, *self.overrides(params, self.config(chosen))]

    def resolved(self, line: Sequence[str]) -> DictConfig:
        """The configuration of a trial's command line, with its stages. Not to be changed."""
        key = tuple(line)
        if key not in self._resolved:
            config = compose_config("train", line)
            resolve_stages(config, line)
            self._resolved[key] = config
        return self._resolved[key]

    @cached_property
    def of_heads(self) -> list[bool]:
        """Whether trials are heads on stored features, for each combination of groups, at its first values."""
        return [suits_heads(self.resolved(self.tried(chosen, 0))) for chosen in self.combinations]

    @cached_property
    def present(self) -> list[Parameter]:
        """The parameters that some combination of groups has."""
        configs = [self.config(chosen) for chosen in self.combinations]
        return [one for one in self.parameters if one in self.groups or any(expanded(one.key, c) for c in configs)]

    def draw(self, sample: Callable[[Sequence[Parameter]], dict[str, Value]]) -> dict[str, Value]:
        """A trial's parameters by key: those that choose a group's option first, then what those options have."""
        params = sample(self.groups)
        config = self.config(self.chosen(params))
        return params | sample([one for one in self.parameters if one not in self.groups and expanded(one.key, config)])

    def chosen(self, params: Mapping[str, Value]) -> list[str]:
        """The options of groups, as overrides."""
        return [written(one.key, params[one.key]) for one in self.groups]

    def overrides(self, params: Mapping[str, Value], config: DictConfig) -> list[str]:
        """What a trial's command line says beside the groups: the base's stages, and its parameters."""
        groups_too = {one.key for one in self.groups}
        stages = [text for text in self.base if "*" in key_of(text)]
        given = {key_of(text) for text in self.base}
        texts = [
            f"{key}={text.partition('=')[2]}" for text in stages for key in expanded(key_of(text), config)
            if key not in given
        ]  # fmt: skip
        for name, value in params.items():
            if name not in groups_too:
                texts += [written(key, value) for key in expanded(name, config)]
        return texts

    @property
    def plain_base(self) -> list[str]:
        """The base without what is said of every stage."""
        return [text for text in self.base if "*" not in key_of(text)]

    def described(self) -> str:
        """What another sweep has to share to go on with this one's trials."""
        space = {one.key: one.described() for one in self.parameters}
        judged = {one.metric: one.direction for one in self.objectives}
        return json.dumps({"base": sorted(self.base), "space": space, "objectives": judged}, sort_keys=True)

    @cached_property
    def combinations(self) -> list[list[str]]:
        """Every choice of the groups' options, at most 64 of them."""
        options = [[written(one.key, value) for value in one.ends] for one in self.groups]
        return [list(chosen) for chosen in product(*options)][:COMBINATIONS]


def read_plan(config: DictConfig, overrides: Sequence[str]) -> Plan:
    """The plan of a composed sweep and its command line.

    Raises:
        UserError: nothing to search or to judge by, or a mistake in the space.
    """
    own = [text for text in overrides if key_of(text).split(".")[0] not in OF_THE_SWEEP]
    own = [text for text in own if key_of(text) != "hydra.run.dir"]
    given = {key_of(text) for text in own}
    base = [text for text in config.sweep.base if key_of(text) not in given]
    space = OmegaConf.to_container(config.sweep.space, resolve=True)
    assert isinstance(space, dict)
    parameters = read_space({str(key): value for key, value in space.items()}, fixed=sorted(given))
    objectives = [Objective.read(text) for text in config.sweep.objectives]
    if not objectives:
        raise UserError("sweep.objectives is empty: name a metric, such as sweep.objectives=[val/f1_weighted]")
    searched = {one.key for one in parameters}
    base = [text for text in base if key_of(text) not in searched]
    logging = [text for text in overrides if key_of(text).split(".")[0] == "logger"]
    if "logger=wandb" in logging:
        logging += [f"logger.group={quoted(Path(config.run_dir).name)}", "logger.job_type=trial"]
    plan = Plan((*base, *own), tuple(parameters), tuple(objectives), tuple(logging))
    _check_keys(plan)
    check_values(plan)
    return plan


def check_values(plan: Plan) -> None:
    """Try the ends of every range and each choice: their types, and what the classes say of them.

    Raises:
        UserError: a value that cannot be.
    """
    encoder = build_encoder(compose_config("train", ["backbone=tiny"]))
    encoder.aligned = True
    for chosen in plan.combinations[:TRIED]:
        config = plan.config(chosen)
        own = [one for one in plan.parameters if one not in plan.groups and expanded(one.key, config)]
        for turn in range(max((len(one.ends) for one in own), default=1)):
            line = plan.tried(chosen, turn)
            try:
                check_command_line("train", line)
                build_approach(plan.resolved(line), encoder, of_this_tower=False)
            except UserError as error:
                raise UserError(f"sweep.space holds values that cannot be: {error}") from None
            except ValueError as error:  # torch's own words, of an optimiser
                raise UserError(f"sweep.space holds values that cannot be: {error} ({', '.join(line)})") from error


def _check_keys(plan: Plan) -> None:
    """Leave out nothing silently: a key that no choice of the groups has is a mistake, unless the sweep says so."""
    for one in plan.groups:
        options = groups()[one.key]
        for value in one.ends:
            if value not in options:
                near = get_close_matches(str(value), options, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(f"sweep.space.{one.key}: no {value}; {hint}choose from {', '.join(options)}")
    configs = [plan.config(chosen) for chosen in plan.combinations]
    known = sorted({key for config in configs for key in all_keys(config)} | set(groups()))
    for one in plan.parameters:
        if one in plan.present:
            continue
        if _belongs_elsewhere(one.key) or any(_idle(one.key, config) for config in configs):
            continue  # of another approach than the chosen one
        near = get_close_matches(one.key, known, n=1, cutoff=0.5)
        raise UserError(f"sweep.space: there is no key {one.key}{f'; did you mean {near[0]}?' if near else ''}")
    if not plan.present:
        raise UserError("the space is empty: this approach has none of its keys that the command line leaves open")


def _belongs_elsewhere(key: str) -> bool:
    """Whether some approach has this key, if not the chosen one: read from the YAMLs, uncomposed."""
    group, _, rest = key.partition(".")
    if group != "approach" or "*" in rest:
        return group == "approach"  # an approach without stages
    above, _, last = rest.rpartition(".")
    options = [("approach", option) for option in groups()["approach"]] + [("shared", name) for name in SHARED]
    for option in options:
        raw = read_option(*option)
        own = raw.get("approach", raw)
        parent = OmegaConf.select(own, above) if above else own
        if isinstance(parent, DictConfig) and last in parent:
            return True
    return False


def suits_heads(config: DictConfig) -> bool:
    """Whether a configuration, its stages resolved, trains at most one head on stored features."""
    approach, trainer = config.approach, config.trainer
    if trainer.gradient_clip_val is not None or trainer.devices != 1 or trainer.processes != "own":
        return False
    if trainer.limit_train_batches != 1.0 or trainer.limit_val_batches != 1.0 or trainer.overfit_batches:
        return False
    active = [stage for stage in (approach.get("stages") or {}).values() if stage.epochs > 0]
    if not active:
        return True
    if len(active) > 1 or "search" not in approach or approach.search is not None or approach.ema is not None:
        return False
    stage, train = active[0], active[0].train
    frozen = train.image_groups == 0 and train.norms == "groups" and not train.projections
    return bool(frozen and stage.views != "fresh" and stage.accumulate == 1)


def expanded(key: str, config: DictConfig) -> list[str]:
    """The keys of a configuration that this one means, `*` standing for each stage; empty if it has none.

    A stage takes every key of the groups `optimizer` and `scheduler`. Without a stage nothing takes them.
    """
    if _idle(key, config):
        return []
    if "*" in key:
        found = [key.replace("*", str(stage), 1) for stage in OmegaConf.select(config, "approach.stages") or {}]
        return [one for one in found if expanded(one, config)]
    above, _, last = key.rpartition(".")
    parent = OmegaConf.select(config, above) if above else config
    if isinstance(parent, DictConfig) and last in parent:
        return [key]
    parts = key.split(".")
    if len(parts) > 3 and parts[:2] == ["approach", "stages"] and parts[2] in config.approach.stages:
        return [key] if expanded(".".join(parts[3:]), config) else []
    return []


def _idle(key: str, config: DictConfig) -> bool:
    """Whether a key is one that stages take, and there is no stage."""
    stages = (OmegaConf.select(config, "approach.stages") or {}).values()
    taken = key.split(".")[0] in GROUPS_OF_STAGES or key == "data.batch_size"
    return taken and not any(stage.epochs for stage in stages)


def written(key: str, value: Value) -> str:
    """An override as Hydra reads it back to just this value."""
    if value is None or isinstance(value, bool):
        return f"{key}={'null' if value is None else str(value).lower()}"
    return f"{key}={value!r}" if isinstance(value, int | float) else f"{key}={_text(value)}"


def _text(value: str) -> str:
    plain = value.replace("_", "").replace("-", "").replace("/", "").replace(".", "")
    return value if plain.isalnum() and not plain[0].isdigit() else quoted(value)
