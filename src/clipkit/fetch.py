"""Download a data set into a folder, and say where to get what may not be downloaded.

Run: python -m clipkit.fetch data=flickr8k data.root=/path/to/flickr8k
     python -m clipkit.fetch data=coco data.root=/path/to/coco mirror=http://my.mirror

Run it again after an interruption: it goes on where it stopped, and does nothing where everything is there.
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("fetch")
def main(config: DictConfig) -> None:
    """Fetch every part of one data set, in the layout that `data=NAME` reads."""
    from pathlib import Path

    from clipkit.data.fetching import fetch_item
    from clipkit.runs.fetch import (
        check_room,
        items_of,
        nothing_to_fetch,
        root_of,
        say,
        say_end,
        say_plan,
        stoppable,
    )
    from clipkit.runs.output_folder import remove_empty

    remove_empty(Path(config.run_dir))  # what is made lies in data.root
    if (why := nothing_to_fetch(config)) is not None:
        say(why)
        return
    from clipkit.runs.progress import ProgressReporter

    root, items, outcomes = root_of(config), items_of(config), []
    say_plan(config, items, root)
    check_room(items, root)
    with stoppable(config), ProgressReporter().showing() as progress:
        for item in items:
            outcome = fetch_item(
                item, root, keep_archives=config.keep_archives, overwrite=config.overwrite, progress=progress, say=say
            )
            outcomes.append((item, outcome))
    say_end(config, outcomes, root)


if __name__ == "__main__":
    main()
