"""Repeat a run from its folder, and compare the numbers.

Run: python -m clipkit.repeat run=outputs/train/my_run
     python -m clipkit.repeat run=outputs/train/multirun/2026-01-31_12-00-00/0 name=again
     make repeat RUN=outputs/train/my_run

Exit status: 0 if every number is the same to the bit, 1 if one differs, 2 if the run could not be repeated.
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("repeat")
def main(config: DictConfig) -> None:
    """Run a recorded command again, as a process of its own in the folder `again/`, and compare `metrics.json`."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.runs.endings import Failed
    from clipkit.runs.record import Run
    from clipkit.runs.repeat_screen import say_comparison
    from clipkit.runs.repeated import compare
    from clipkit.runs.repeating import plan, recorded, run_again

    overrides = list(HydraConfig.get().overrides.task)
    before = recorded(config.run)
    planned = plan(before, cache_dir=config.cache_dir if _said(overrides, "cache_dir") else None)
    run = Run(config, overrides)
    with run.recording():
        again = run_again(before, planned, run.folder / "again")
        found = compare(before, again, planned)
        run.finish(repeats=str(before.folder), same=not found.differences, **found.about())
    say_comparison(found, run.folder)
    if found.differences:
        raise Failed(None, 1)


def _said(overrides: list[str], key: str) -> bool:
    return any(text.partition("=")[0].lstrip("+") == key for text in overrides)


if __name__ == "__main__":
    main()
