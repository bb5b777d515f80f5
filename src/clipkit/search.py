"""Find pictures by a sentence, or by a picture; what the model says of them is kept for the next search.

Run: python -m clipkit.search model=emoji_clip images=DIR query="one dog sitting on the grass"
     python -m clipkit.search model=emoji_clip images=DIR query='[a cat,a red car]' top=50
     python -m clipkit.search model=outputs/train/my_run images=DIR query_image=like_this.jpg
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("search")
def main(config: DictConfig) -> None:
    """Answer all queries, write the table, the grid and the page."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.gallery import find_pictures
    from clipkit.runs import machine
    from clipkit.runs.asking import as_list
    from clipkit.runs.load import load
    from clipkit.runs.progress import ProgressReporter
    from clipkit.runs.record import Run
    from clipkit.runs.search import search, write_results
    from clipkit.runs.search_page import say_found, write_figure, write_search_page

    gallery = find_pictures(as_list(config.images))
    machine.prepare_machine(None)
    device = machine.choose_device(config.device)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        machine.set_seed(config.seed)
        model = load(config.model).to(device)
        with ProgressReporter().showing() as progress:
            found = search(config, model, gallery, run, on_progress=progress)
        write_results(run.folder, found)
        write_figure(run, found, gallery)
        run.note_cost()
        if config.report:
            write_search_page(run, config, found, gallery)
        run.finish(pictures=found.pictures, encoded=found.encoded, broken=len(found.broken))
        say_found(run, found, gallery)


if __name__ == "__main__":
    main()
