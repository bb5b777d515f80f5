"""Evaluate a model on a data set: the evaluators that training itself uses.

Run: python -m clipkit.evaluate model=outputs/train/my_run data=emoji
     python -m clipkit.evaluate model=emoji_clip data=folder data.root=/path/to/pictures
     python -m clipkit.evaluate model=outputs/train/my_run evaluators=[wise_ft] retention_data=synthetic
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("evaluate")
def main(config: DictConfig) -> None:
    """Run one evaluation."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.decoding import refuse_if_broken
    from clipkit.data.streaming_datamodule import StreamData
    from clipkit.features import FeatureStore
    from clipkit.features.frozen import FrozenFeatures
    from clipkit.runs import build, machine, results
    from clipkit.runs.load import load
    from clipkit.runs.progress import ProgressReporter, say
    from clipkit.runs.record import Run
    from clipkit.runs.wise_ft import make_wise_ft

    names = results.choose_evaluators(config.evaluators)
    build.settle_retention_data(config)
    machine.prepare_machine(None)
    device = machine.choose_device(config.device)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        machine.set_seed(config.seed)
        model = load(config.model).to(device)
        data = build.build_data(config, model.encoder)
        with ProgressReporter().showing() as progress:
            broken, total = data.find_broken(on_progress=progress)
        refuse_if_broken(broken, total, data.max_broken, run.write_broken(broken))
        split = results.choose_split(data, config.split)
        notes = [*data.records.notes, f"evaluated on: {split} ({len(data.split(split)) or total:,} pictures)"]
        made = {}
        if "wise_ft" in names:
            made["wise_ft"], said = make_wise_ft(config, model, run)
            notes += said
        say(notes)
        features = FrozenFeatures(model.encoder, data, FeatureStore(f"{config.cache_dir}/features"))
        stored = None if isinstance(data, StreamData) else features
        result = results.evaluate_model(model, data, names, split, made=made, stored=stored)
        run.note_cost()
        title = f"{config.model} on {data.records.name}"
        results.write_everything(run, config, result, title=title, notes=notes)
        run.finish()
        results.closing_table(title, result.metrics, results.places(run))


if __name__ == "__main__":
    main()
