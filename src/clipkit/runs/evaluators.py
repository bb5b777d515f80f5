"""Evaluators made from the configuration: their options are the keys of the mapping that has their name."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from clipkit.data.datamodule import PairData
from clipkit.data.sources.groups import groups
from clipkit.evaluation import EVALUATORS, Association, Evaluator
from clipkit.models.model import Model
from clipkit.runs.progress import ProgressReporter
from clipkit.runs.record import Run
from clipkit.runs.wise_ft import make_wise_ft

__all__ = ["evaluators_of", "evaluators_with_model"]

NEED_A_MODEL = ("wise_ft", "association")


def evaluators_of(config: DictConfig, names: Sequence[str]) -> dict[str, Evaluator]:
    """The evaluators that options alone make: conf/evaluate.yaml has them as NAME.KEY, the class as arguments.

    Raises:
        UserError: an option's value makes no sense.
    """
    made = {}
    for name in names:
        options = OmegaConf.select(config, name)
        if isinstance(options, DictConfig) and name not in NEED_A_MODEL:
            plain = OmegaConf.to_container(options, resolve=True)
            assert isinstance(plain, dict)
            made[name] = EVALUATORS[name](**{str(key): value for key, value in plain.items()})
    return made


def evaluators_with_model(
    config: DictConfig, names: Sequence[str], model: Model, run: Run
) -> tuple[dict[str, Evaluator], list[str]]:
    """The evaluators that also need the model (or its preprocessing), and what is to be said of them.

    Raises:
        UserError: what they need is not there, or is wrong.
    """
    made: dict[str, Evaluator] = {}
    notes: list[str] = []
    if "wise_ft" in names:
        made["wise_ft"], said = make_wise_ft(config, model, run)
        notes += said
    if "association" in names:
        made["association"], said = _association(config, model)
        notes += said
    return made, notes


def _association(config: DictConfig, model: Model) -> tuple[Association, list[str]]:
    """The evaluator of `config.association`; pictures that cannot be read are listed and left out."""
    asked, encoder = config.association, model.encoder
    records = groups(asked.file, key="association.file")
    data = PairData(
        records, preprocess=encoder.preprocess, tokenize=encoder.tokenize, memory_limit=config.data.memory_limit,
        workers=config.data.workers, cache_dir=config.cache_dir, seed=config.seed,
    )  # fmt: skip
    with ProgressReporter().showing() as progress:
        broken, total = data.find_broken(on_progress=progress)
    evaluator = Association(data, list(asked.labels), templates=list(asked.templates), unreadable=broken)
    names = records.class_names
    counts = [int((data.records.labels == index).sum()) for index in range(len(names))]
    of_each = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    notes = [f"association: {total - len(broken):,} pictures of {len(names)} groups ({of_each})"]
    if broken:
        shown = "; ".join(f"{name} ({reason})" for name, reason in broken[:3]) + (" …" if len(broken) > 3 else "")
        listed = "tables/association-unreadable.csv"
        notes.append(
            f"association: {len(broken)} of {total} pictures cannot be read and are left out ({listed}): {shown}"
        )
    return evaluator, notes
