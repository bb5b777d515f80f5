"""Say what is on pictures: the probabilities of labels that you give, or of the model's own classes.

Run: python -m clipkit.predict model=emoji_clip images=DIR labels="a cat,a dog"
     python -m clipkit.predict model=outputs/train/my_run images=DIR
     python -m clipkit.predict model=emoji_clip images='pictures/*.png' labels=labels.txt 'templates=["{}"]'
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("predict")
def main(config: DictConfig) -> None:
    """Look at every picture, write the table and the page."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.gallery import find_pictures
    from clipkit.data.label_list import read_labels
    from clipkit.runs import machine
    from clipkit.runs.asking import as_list, choose_templates
    from clipkit.runs.load import load
    from clipkit.runs.predict import choose_classifier, predict
    from clipkit.runs.predict_page import say_predictions, write_predictions_page
    from clipkit.runs.progress import ProgressReporter, say
    from clipkit.runs.record import Run

    labels = None if config.labels is None else read_labels(as_list(config.labels))
    gallery = find_pictures(as_list(config.images))
    machine.prepare_machine(None)
    device = machine.choose_device(config.device)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        machine.set_seed(config.seed)
        model = load(config.model).to(device)
        classifier, notes = choose_classifier(model, labels, choose_templates(config))
        say(notes)
        with ProgressReporter().showing() as progress:
            found = predict(
                model,
                classifier,
                gallery,
                run,
                top=config.top,
                batch_size=config.batch_size,
                on_progress=progress,
            )
        run.note_cost()
        if config.report:
            write_predictions_page(run, config, found, gallery, notes=notes)
        run.finish(pictures=found.answered, broken=len(found.broken), labels=len(found.labels))
        say_predictions(run, found, gallery)


if __name__ == "__main__":
    main()
