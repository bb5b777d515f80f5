"""Describe a data set: counts, splits, classes, captions, broken pictures, and ten pictures on a page.

Run: python -m clipkit.describe data=emoji
     python -m clipkit.describe data=coco data.root=/path/to/coco
     python -m clipkit.describe data=pairs data.file=captions.csv check=false    open no picture but those shown
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("describe")
def main(config: DictConfig) -> None:
    """Describe one data set; too many broken pictures are an error after everything is said."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.decoding import refuse_if_broken
    from clipkit.runs import build, machine
    from clipkit.runs.describe import describe
    from clipkit.runs.describe_page import write_description
    from clipkit.runs.describe_screen import say_description
    from clipkit.runs.progress import ProgressReporter
    from clipkit.runs.record import Run

    machine.prepare_machine(None)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        records = build.build_records(config)
        with ProgressReporter().showing() as progress:
            found = describe(config, records, on_progress=progress)
        run.note_cost()
        write_description(run, config, found)
        say_description(found, run.folder)
        if found.checked is not None:
            listing = run.folder / "broken_images.csv"
            refuse_if_broken(found.checked.broken, len(records), found.max_broken, listing)
        run.finish()


if __name__ == "__main__":
    main()
