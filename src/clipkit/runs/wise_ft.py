"""What the evaluator wise_ft needs beside the run's model: the model that it began from, and data to retain."""

from omegaconf import DictConfig

from clipkit.data.decoding import refuse_if_broken
from clipkit.errors import UserError
from clipkit.evaluation import WiseFT
from clipkit.evaluation.classify import has_classes
from clipkit.models.model import Model
from clipkit.runs.build import build_retention_data
from clipkit.runs.load import load
from clipkit.runs.progress import ProgressReporter
from clipkit.runs.record import Run
from clipkit.runs.results import choose_split

__all__ = ["make_wise_ft"]


def make_wise_ft(config: DictConfig, model: Model, run: Run) -> tuple[WiseFT, list[str]]:
    """The evaluator of `config.base` and `config.retention_data`, and what is to be said of them.

    Raises:
        UserError: the run has no start and `base` is not given; a start that is gone; broken retention data.
    """
    start, name = _start(config, model)
    if config.retention_data is None:
        said = "retention_data=… would add zero-shot accuracy on a second data set: it is left out"
        return WiseFT(start), [f"wise_ft: from {name}; {said}"]
    data = build_retention_data(config, model.encoder)
    with ProgressReporter().showing() as progress:
        broken, total = data.find_broken(on_progress=progress)
    refuse_if_broken(broken, total, data.max_broken, run.write_broken(broken))
    split = choose_split(data)
    records = data.records if split == "all" else data.split(split)
    if not has_classes(records):
        raise UserError(f"retention_data: {data.records.name} ({split}) has no two classes to tell apart")
    notes = [*data.records.notes, f"wise_ft: from {name}; retention on {data.records.name}, {split} ({len(records):,})"]
    return WiseFT(start, retention=(data, records)), notes


def _start(config: DictConfig, model: Model) -> tuple[Model, str]:
    if config.base is not None:
        return load(config.base).to(model.device), str(config.base)
    if model.start is None:
        raise UserError(
            f"{config.model} records no start (it was trained from scratch, or before starts were recorded): "
            "give base=…, a run's folder, hf:NAME, open_clip:ARCH/TAG or a backbone's name"
        )
    try:
        return load(model.start).to(model.device), model.start
    except UserError as error:
        raise UserError(f"the start that {config.model} records cannot be loaded; give base=…. {error}") from error
