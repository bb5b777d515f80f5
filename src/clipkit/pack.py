"""Pack a data set: decode every picture once into a store that training then reads instead of the files.

Run: python -m clipkit.pack data=coco data.root=/path/to/coco size=256
     python -m clipkit.pack data=coco data.root=/path/to/coco size=256 format=jpeg
"""

from omegaconf import DictConfig, OmegaConf

from clipkit.errors import UserError
from clipkit.runs.command import command


@command("pack")
def main(config: DictConfig) -> None:
    """Pack one data set."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.data.decoding import available_cores, refuse_if_broken
    from clipkit.data.packing import pack
    from clipkit.runs.build import build_records
    from clipkit.runs.pack_screen import show_packed
    from clipkit.runs.progress import ProgressReporter, say
    from clipkit.runs.record import Run

    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        if OmegaConf.select(config, "data.streams"):
            raise UserError("data=webdataset is a stream: packing needs a table of pictures, and its shards are packed")
        records = build_records(config)
        say(records.notes)
        with ProgressReporter().showing() as progress:
            store, broken = pack(
                records,
                f"{config.cache_dir}/packed",
                size=config.size,
                format=config.format,
                quality=config.quality,
                threads=available_cores(),
                overwrite=config.overwrite,
                on_progress=progress,
            )
        listing = run.write_broken(broken)
        show_packed(store, len(records), listing if broken else None)
        run.finish(store=str(store.place), pictures=len(store))
        refuse_if_broken(broken, len(records), config.data.max_broken, listing)


if __name__ == "__main__":
    main()
