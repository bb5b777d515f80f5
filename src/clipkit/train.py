"""Train a model: stages, evaluation, pictures, report.

Run: python -m clipkit.train                      the embedded set and towers that need no hub
     python -m clipkit.train --help               the groups and keys
     python -m clipkit.train resume=RUN_FOLDER    continue
     python -m clipkit.train trainer=ddp          on every GPU of the machine
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("train")
def main(config: DictConfig) -> float | None:
    """Run one training; returns the monitored validation score, for sweeps."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.decoding import refuse_if_broken
    from clipkit.data.manifest import write_manifest
    from clipkit.features import FeatureStore
    from clipkit.features.frozen import FrozenFeatures
    from clipkit.models.folder import save_model
    from clipkit.ranks import first_on_each_machine
    from clipkit.runs import build, launch, machine, results
    from clipkit.runs.checkpoints import StopSignals
    from clipkit.runs.load import name_of_start
    from clipkit.runs.progress import ProgressReporter
    from clipkit.runs.record import open_run
    from clipkit.runs.tokenizers import settle_tokenizer
    from clipkit.runs.training import train_stages
    from clipkit.runs.validation import validation_scores

    overrides = list(HydraConfig.get().overrides.task)
    build.resolve_stages(config, overrides)
    machine.check_accelerator(config.trainer)
    results.choose_evaluators(config.evaluators)
    processes = launch.wanted(config.trainer)
    if processes > 1:
        return launch.supervise(config, processes)
    machine.prepare_machine(config.trainer.threads)
    run = open_run(config, overrides, resume=config.resume is not None)
    if run.finished:
        results.show_finished(run)
        return None
    signals = StopSignals(run.folder)
    with signals.watching(), run.recording():
        machine.set_seed(config.seed)
        device = machine.choose_device(config.trainer.accelerator)
        with first_on_each_machine():
            notes = settle_tokenizer(config)
        encoder = build.build_encoder(config)
        encoder.spec(towers=config.save.towers)  # what cannot be saved so is said now
        encoder.frozen_dtype = machine.frozen_dtype(config.trainer.frozen_precision)
        data = build.build_data(config, encoder)
        approach, decided = build.build_approach(config, encoder)
        with ProgressReporter().showing() as progress:
            broken, total = data.find_broken(packed=run.about.get("packed"), on_progress=progress)
        refuse_if_broken(broken, total, data.max_broken, run.write_broken(broken))
        run.note(packed=data.packed, data=data.said)
        if data.choice is not None and run.writes:
            write_manifest(run.folder / "manifest.json", data.records, data.choice)
        notes = [
            *(*data.records.notes, *notes, *decided, *approach.notes(data)),
            *([f"{len(broken)} broken pictures are skipped"] if broken else []),
        ]
        results.opening(run, config, data, notes)

        with ProgressReporter().showing() as progress:
            store = FeatureStore(f"{config.cache_dir}/features")
            features = FrozenFeatures(encoder, data, store, on_progress=progress)
            loggers, score = train_stages(config, approach, features, run, signals, device)
        notes += run.about.get("alarms", [])

        encoder.aligned, encoder.frozen_dtype = encoder.aligned or approach.aligns, None
        approach.to(device)  # Lightning leaves it on the CPU
        approach.finish(features)
        model = approach.model(data.templates)
        model.start = name_of_start(config.backbone)
        if run.writes:
            save_model(model, run.folder / "model", **config.save)
        known = features if approach.keeps_image_tower else None
        result, said = results.evaluate_training(model, data, config.evaluators, features=known)
        notes += said
        scores = validation_scores(approach.validation, model, data, stored=known)
        if not run.writes:
            return score  # process 0 writes down what all have found
        run.note(**approach.about)
        result.tables |= approach.tables
        result.figures = results.training_curves(run.folder) | result.figures
        title = results.title(config)
        results.write_everything(run, config, result, validation=scores, loggers=loggers, on=(model, data), notes=notes)
        run.finish(score=score)
        results.closing_table(title, result.metrics, results.places(run))
    return score


if __name__ == "__main__":
    main()
