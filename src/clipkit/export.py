"""Write a model for another library.

Run: python -m clipkit.export model=outputs/train/my_run format=transformers
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("export")
def main(config: DictConfig) -> None:
    """Export one model, and compare it with the original before saying that it is done."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.runs import machine
    from clipkit.runs.export import export, holds_model, say
    from clipkit.runs.load import load
    from clipkit.runs.output_folder import choose_folder
    from clipkit.runs.record import Run

    machine.prepare_machine(None)
    choose_folder(config, what="an exported model", holds=holds_model)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        model = load(config.model)
        kind, difference = export(model, run.folder, config.format)
        run.finish()
        say(kind, difference, run.folder)


if __name__ == "__main__":
    main()
