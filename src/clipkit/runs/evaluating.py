"""One evaluation, or one for each of several models with a comparison of them all.

Run: python -m clipkit.evaluate model=outputs/train/mine data=emoji
     python -m clipkit.evaluate model=[outputs/train/mine,emoji_clip] data=emoji
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, open_dict

from clipkit.data.decoding import refuse_if_broken
from clipkit.data.streaming_datamodule import StreamData
from clipkit.errors import UserError
from clipkit.evaluation import Evaluator, Result
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.runs import build, machine, results
from clipkit.runs.comparison import compare
from clipkit.runs.endings import Failed
from clipkit.runs.evaluators import evaluators_of, evaluators_with_model
from clipkit.runs.load import load
from clipkit.runs.progress import ProgressReporter, console, say
from clipkit.runs.record import Run

__all__ = ["evaluate_models"]


def evaluate_models(config: DictConfig) -> None:
    """Evaluate `config.model`; a list is compared, each model in a folder of its own below the run's.

    Raises:
        UserError: a wrong name; what is wrong with model or data.
        Failed: some of several models could not be evaluated; the others are.
    """
    configured = [] if config.association.file is None else ["association"]
    names, said = results.choose_evaluators(config.evaluators, configured=configured)
    made = evaluators_of(config, names)
    say(said)
    build.settle_retention_data(config)
    build.settle_templates(config)
    overrides = list(HydraConfig.get().overrides.task)
    if not isinstance(config.model, ListConfig):
        _evaluate(config, names, overrides, made=made, said=said)
        return
    models = [str(model) for model in config.model]
    if len(models) < 2:
        raise UserError("model=[…] compares several models: give two or more, or one without brackets")
    run = Run(config, overrides)
    with run.recording():
        found: dict[str, Result] = {}
        failed: dict[str, str] = {}
        for label, model in zip(_labels(models), models, strict=True):
            console.print(f"\n[bold]{label}[/bold]", soft_wrap=True)
            own = config.copy()
            with open_dict(own):
                own.model, own.run_dir = model, f"{config.run_dir}/{label}"
            try:
                others = [text for text in overrides if not text.startswith("model=")]
                found[label] = _evaluate(own, names, others, made=made, said=said)
            except UserError as error:
                failed[label] = str(error)
                console.print(f"error: {error}", markup=False, soft_wrap=True)
        if not found:
            raise UserError("none of the models could be evaluated")
        compare(run, config, found, failed)
        run.finish()
    if failed:
        raise Failed(f"{len(failed)} of {len(models)} models could not be evaluated: {', '.join(failed)}", 2)


def _evaluate(
    config: DictConfig,
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    made: Mapping[str, Evaluator],
    said: Sequence[str],
) -> Result:
    """One model: its numbers, files and report in `config.run_dir`."""
    machine.prepare_machine(None)
    device = machine.choose_device(config.device)
    run = Run(config, overrides)
    with run.recording():
        machine.set_seed(config.seed)
        model = load(config.model).to(device)
        data = build.build_data(config, model.encoder)
        with ProgressReporter().showing() as progress:
            broken, total = data.find_broken(on_progress=progress)
        refuse_if_broken(broken, total, data.max_broken, run.write_broken(broken))
        split = results.choose_split(data, config.split)
        notes = [*data.records.notes, f"evaluated on: {split} ({len(data.split(split)) or total:,} pictures)"]
        more, about = evaluators_with_model(config, names, model, run)
        notes += about
        say(notes)
        run.note(data=data.said)
        features = FrozenFeatures(model.encoder, data, FeatureStore(f"{config.cache_dir}/features"))
        stored = None if isinstance(data, StreamData) else features
        made = {**made, **more}
        asked = config.evaluators is not None
        result = results.evaluate_model(model, data, names, split, made=made, stored=stored, must_fit=asked)
        if not result.metrics and not result.tables and not result.figures:
            raise UserError(
                f"{data.records.name} ({split}) has neither labels of two classes nor captions to ask about"
            )
        title = f"{config.model} on {data.records.name}"
        results.write_everything(run, config, result, headline=title, notes=[*said, *notes])
        run.finish()
        results.closing_table(title, result.metrics, results.places(run))
    return result


def _labels(models: Sequence[str]) -> list[str]:
    """A short name for each model, fit for a folder: the end of its name, longer where two would be equal."""
    parts = [[part for part in Path(model).parts if part not in ("model", "/")] for model in models]
    used = [1] * len(models)
    for _ in range(max(map(len, parts))):
        labels = ["_".join(part[-length:]).replace(":", "-") for part, length in zip(parts, used, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
        used = [length + (labels.count(label) > 1) for length, label in zip(used, labels, strict=True)]
    return [f"{number}_{label}" for number, label in enumerate(labels)]
