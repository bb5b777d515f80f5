"""What a run leaves behind, and when: `config.yaml`, `run.json`, `metrics.json`, tables, plots."""

import fcntl
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clipkit import ranks
from clipkit.errors import UserError
from clipkit.runs.choices import folders_of_ones_own
from clipkit.runs.endings import Interrupted
from clipkit.runs.provenance import provenance
from clipkit.runs.recipe import flat, may_change, recipe_of

if TYPE_CHECKING:  # or in the functions that draw and write tables: they take seconds to load
    import pandas as pd
    from matplotlib.figure import Figure

    from clipkit.evaluation import Result

__all__ = [
    "Busy",
    "Run",
    "alone_in",
    "choices",
    "how_begun",
    "mark_failed",
    "open_run",
    "read_json",
    "release",
    "write_json",
]

CARRIED = ("packed", "alarms", "performance", "wandb_id")  # from what was stopped to what continues it


class Run:
    """The folder of one run. Where several processes train together, process 0 alone writes it: see `open_run`.

    Args:
        config: complete; written to `config.yaml`.
        overrides: the command line.
        resume: continue what is there.

    Raises:
        UserError: the folder holds a run already (without `resume` or `overwrite`), another process is at work there,
            or a resumed run's configuration differs in what decides its result.
    """

    at_end: Sequence[Callable[[str], None]] = ()  # told the status when the run ends, however it does

    def __init__(self, config: DictConfig, overrides: Sequence[str], *, resume: bool = False) -> None:
        self.folder = Path(config.run_dir)
        self.writes = True
        self._lock: IO[str] | None = None
        self.started = time.time()
        self.about: dict[str, Any] = {}
        before = read_json(self.folder / "run.json")
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        stillborn = before is not None and before.get("status") == "failed" and not _has_results(self.folder)
        if before is not None and "overrides" in before and not stillborn:
            if not resume and not config.overwrite:
                go_on = f"continue it with resume={self.folder}, " if "resume" in config else ""
                raise UserError(
                    f"{self.folder} already holds a run ({before.get('status')}): {go_on}replace it with "
                    "overwrite=true, or choose another name"
                )
            if resume:
                _same_configuration(self.folder, plain)
                self.about = {"earlier_wall_s": before.get("wall_s", 0) + before.get("earlier_wall_s", 0)}
                self.about |= {key: before[key] for key in CARRIED if key in before}
        self.finished = resume and before is not None and before.get("status") == "finished"
        if self.finished:
            assert before is not None
            self.about = before
            return
        self._lock = alone_in(self.folder)
        if before is not None and (not resume or stillborn):
            _remove_results(self.folder, keep=OmegaConf.select(config, "data.manifest"))
        overrides = [text for text in overrides if text.partition("=")[0] not in ("resume", "overwrite")]
        known = HydraConfig.initialized()  # a launcher runs jobs under a command line of its own
        command = HydraConfig.get().job.config_name if known else Path(sys.argv[0]).stem
        self.about |= {"status": "running", "process": os.getpid()}
        self.about |= how_begun(command, overrides, plain, chosen=choices() if known else {}, own=folders_of_ones_own())
        self.about |= provenance()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
            self._save()
        except OSError as error:
            raise UserError(f"the run's folder {self.folder} cannot be written: {error}") from error

    def note(self, **values: Any) -> None:
        """Add to `run.json` now."""
        self.about |= values
        self._save()

    def alarm(self, text: str) -> None:
        """Add to the alarms in `run.json`."""
        self.note(alarms=[*self.about.get("alarms", []), text])

    def write_results(self, result: "Result", dpi: int = 110, *, validation: Mapping[str, float] | None = None) -> None:
        """Write `metrics.json` (with what `validation` said beside it), `tables/*.csv` and `plots/*.png`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if not self.writes:
            return
        try:
            metrics = {**(validation or {}), **result.metrics}
            write_json(self.folder / "metrics.json", dict(sorted(metrics.items())))
        except OSError as error:
            raise UserError(f"results could not be written to {self.folder}: {error}") from error
        self.write_tables_and_plots(result.tables, result.figures, dpi=dpi)

    def write_tables_and_plots(
        self, tables: Mapping[str, "pd.DataFrame"], figures: Mapping[str, "Figure"], *, dpi: int = 110
    ) -> None:
        """Write `tables/*.csv` and `plots/*.png`; `UserError` if that cannot be done."""
        try:
            for name, table in tables.items():
                (self.folder / "tables").mkdir(exist_ok=True)
                table.to_csv(self.folder / "tables" / f"{name}.csv", index=False)
            for name, figure in figures.items():
                from clipkit.plots.png import png

                (self.folder / "plots").mkdir(exist_ok=True)
                (self.folder / "plots" / f"{name}.png").write_bytes(png(figure, dpi=dpi))
        except OSError as error:
            raise UserError(f"results could not be written to {self.folder}: {error}") from error

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever ends the run inside is written down in `run.json`, and goes on upwards."""
        try:
            yield
        except BaseException as error:
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            with suppress(OSError):  # a full disk must not hide the reason
                self.finish(status, error=f"{type(error).__name__}: {error}")
            raise

    def write_broken(self, broken: Sequence[tuple[str, str]]) -> Path:
        """List broken pictures in the run's folder; returns the file's path."""
        path = self.folder / "broken_images.csv"
        if broken and self.writes:
            import pandas as pd

            pd.DataFrame(broken, columns=["image", "reason"]).to_csv(path, index=False)
        return path

    def finish(self, status: str = "finished", **values: Any) -> None:
        """Close the record: status, wall time, peak memory."""
        self.note_cost()
        self.note(**values, status=status)
        for end in self.at_end:
            end(status)
        if self._lock is not None:
            release(self._lock)

    def note_cost(self) -> None:
        """Write down time and memory up to now."""
        self.note(
            wall_s=round(time.time() - self.started, 1),
            peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        )

    def _save(self) -> None:
        if self.writes:
            write_json(self.folder / "run.json", self.about)


def open_run(config: DictConfig, overrides: Sequence[str], *, resume: bool = False) -> Run:
    """The run on every process that takes part: process 0 opens its folder, the others' record writes nothing."""
    opened: list[Run] = []

    def about() -> dict[str, Any]:
        opened.append(Run(config, overrides, resume=resume))
        return opened[0].about | {"finished": opened[0].finished}

    known = ranks.from_first(about)
    return opened[0] if opened else _Reader(Path(config.run_dir), known)


class _Reader(Run):
    """A run as the processes that do not write it know it."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.started, self.writes, self._lock = folder, time.time(), False, None
        self.finished = about.pop("finished")
        self.about = about


def how_begun(
    command: str | None,
    overrides: Sequence[str],
    config: Mapping[Any, Any],
    *,
    chosen: Mapping[str, Any],
    own: Sequence[str] = (),
) -> dict[str, Any]:
    """What `run.json` says of a run that begins now: its command line, and what that was composed to.

    Args:
        command: its name.
        overrides: the command line.
        config: resolved.
        chosen: the options of the configuration groups.
        own: folders of the user's own, with further options.
    """
    flags = [part for folder in own for part in ("--config-dir", folder)]
    return {
        "overrides": list(overrides),
        "command": " ".join(["python", "-m", f"clipkit.{command}", *flags, *overrides]),
        **({"config_dirs": list(own)} if own else {}),
        "cwd": os.getcwd(),  # what relative paths on the command line are meant from
        "choices": dict(chosen),
        "recipe": recipe_of(config),
        "seed": config["seed"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processes": ranks.ranks(),
    }


def choices() -> dict[str, Any]:
    """The options of the configuration groups that this job was composed from."""
    chosen = HydraConfig.get().runtime.choices
    return {str(group): option for group, option in chosen.items() if not str(group).startswith(("hydra/", "shared/"))}


def mark_failed(folder: Path, message: str, *, process: int) -> None:
    """Write down why a run ended that could not do so itself, if it is that process's run."""
    about = read_json(folder / "run.json") or {}
    if about.get("process") == process:
        with suppress(OSError):
            write_json(folder / "run.json", {**about, "status": "failed", "error": message})


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place and move it there: a reader never sees half of it."""
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    part.replace(path)


class Busy(UserError):
    """Another process is at work in a run's folder."""


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's mapping; None if there is none, empty if it is damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError):
        return {}
    return value


def _same_configuration(folder: Path, config: dict[Any, Any]) -> None:
    """Refuse to resume with another recipe: the result would belong to neither."""
    try:
        before = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except OSError:
        return
    old, new = (dict(flat(c)) for c in (before, config))
    fixed = {"data.workers"} if new.get("data.streams") else set()  # they decide a stream's order
    changed = [
        key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and (key in fixed or not may_change(key))
    ]
    if changed:
        shown = ", ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in changed[:5])
        raise UserError(
            f"resuming {folder} with another configuration ({shown}): leave these keys as they were, or start a new "
            f"run from its weights with backbone=checkpoint backbone.path={folder}/model"
        )


def alone_in(folder: Path) -> IO[str]:
    """Keep other processes out of a run's folder, as long as this one lives and the returned file is open.

    Raises:
        UserError: another process is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"the run's folder {folder} cannot be written: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"another process is at work in {folder}: wait for its end, or choose another name") from None
    except OSError:
        pass  # a disk without locks
    return file


def release(lock: IO[str]) -> None:
    """Let others into a folder again."""
    with suppress(OSError):
        os.unlink(lock.name)
    lock.close()


def _has_results(folder: Path) -> bool:
    """Whether a run got as far as a checkpoint or a result; a mistake on the command line does not take its name."""
    made = (
        "checkpoints", "model", "metrics.json", "metrics.csv", "tokenizer.json", "model.safetensors", "summary.json",
        "predictions.csv", "results.csv", "study.db",
    )  # fmt: skip
    return any((folder / name).exists() for name in made)


def _remove_results(folder: Path, *, keep: str | None = None) -> None:
    """What an earlier run left, before a new one overwrites it: nothing of the two may mix. `keep` is still needed."""
    import shutil

    folders = ("checkpoints", "model", "plots", "tables", "tensorboard", "wandb", "trials", "experiment", ".owners")
    for name in folders:
        shutil.rmtree(folder / name, ignore_errors=True)
    files = (
        "metrics.json", "metrics.csv", "report.html", "broken_images.csv", "summary.json", "describe.html",
        "manifest.json", "bad_batch.json", "predictions.csv", "results.csv", "results.png",
        "study.db", "study.db-wal", "study.db-shm", "trials.csv",
    )  # fmt: skip
    for name in files:
        if keep is None or (folder / name).resolve() != Path(keep).expanduser().resolve():
            (folder / name).unlink(missing_ok=True)
