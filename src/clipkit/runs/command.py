"""The one shape of all commands: `python -m clipkit.COMMAND key=value …`.

Wraps `hydra.main`: texts and paths are taken literally, mistakes become one message and exit status 2, and under
`--multirun` a failed job is recorded while the others run.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clipkit.errors import UserError

__all__ = ["Failed", "Interrupted", "command", "quoted"]

LITERAL = (
    "labels", "query", "images", "model", "resume", "base", "root", "data.root", "data.val_root", "data.test_root",
    "data.file", "data.manifest", "backbone.path", "backbone.name", "backbone.text.tokenizer", "name", "output",
)  # fmt: skip
LISTS = ("labels",)
TAKE_A_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c",
)  # fmt: skip
AFTER_FIRST_S = 10.0
FLAGS_THAT_ONLY_SHOW = ("--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc")


class Interrupted(BaseException):
    """The run was asked to stop (Ctrl-C, SIGTERM). Carries the message for the person and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Failed(Exception):
    """A process that this one had started has failed. Carries its exit status, and what it has not said itself."""

    def __init__(self, message: str | None, status: int) -> None:
        super().__init__(message, status)  # both: it is pickled on its way from a launcher's job
        self.message, self.status = message, status


class _Failures:
    """The exit statuses of the jobs that failed in this process; None in one that a launcher has started."""

    here: list[int] | None = None


def command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a configuration into a command; `name` is its primary configuration file."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            sys.exit(_run(name, task, sys.argv[1:]))

        main.__doc__ = task.__doc__
        return main

    return decorate


def _run(name: str, task: Callable[[DictConfig], Any], arguments: list[str]) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads stall on a busy machine
    import hydra
    from hydra.core.hydra_config import HydraConfig

    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    flags = [a for a in arguments if a.startswith("-")]
    failures = _Failures.here = []
    try:
        if any(flag in ("--help", "-h") for flag in flags):
            from clipkit.runs.help import help_text

            print(help_text(name))
            return 0
        arguments = _prepare(name, arguments, multirun)
        if name == "train":
            arguments = _meet_others(name, arguments, multirun)
    except UserError as error:
        return _say(error)

    def job(config: DictConfig) -> Any:  # a launcher may pickle it and run it on another machine
        try:
            with open_dict(config):
                config.run_dir = HydraConfig.get().runtime.output_dir
            if name == "train":
                _meet_in_job(config)
            return task(config)
        except UserError as error:
            _note_failure(config, str(error))
            status = _say(error)
        except Failed as error:
            if error.message is not None:
                print(f"error: {error.message}", file=sys.stderr)
            status = error.status
        except Interrupted as stop:
            if not _first_has_left() and str(stop):
                print(f"\n{stop}", file=sys.stderr)
            _let_launcher_requeue(stop.status)
            sys.exit(stop.status)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            _note_failure(config, "stopped by Ctrl-C")
            sys.exit(130)
        except Exception as error:
            _note_failure(config, f"{type(error).__name__}: {error}")
            ranks = _met()
            if ranks is not None and ranks.has_lost_others(error):
                print(f"process {ranks.rank()} has lost the others", file=sys.stderr)
                sys.exit(1)
            if not multirun:
                raise
            import traceback

            traceback.print_exc()
            status = 2
        if _Failures.here is None:
            raise Failed(None, status)  # the launcher brings it back to the process that waits for all jobs
        _Failures.here.append(status)
        return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # our bugs keep their traceback
    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path="pkg://clipkit.conf", config_name=name)(job)()
    except Failed:
        print("jobs of this multirun failed; their folders say why in run.json", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; jobs that a launcher has submitted go on", file=sys.stderr)
        return 130
    except Exception as error:
        said = _launcher_says(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2
    ranks = _met()
    if ranks is not None and not failures:
        ranks.leave()
    if failures and multirun:
        print(f"{len(failures)} job(s) of this multirun failed; their folders say why in run.json", file=sys.stderr)
    return 0 if not failures else 2 if multirun else failures[0]


def _meet_others(name: str, arguments: list[str], multirun: bool) -> list[str]:
    """Where several processes were started to train together: meet them, and use the same folder as process 0."""
    if not any(key in os.environ for key in ("RANK", "SLURM_PROCID")):
        return arguments
    from clipkit import ranks
    from clipkit.runs.compose import compose_config, output_folder
    from clipkit.runs.launch import end_with_parent, found_place, meet, wanted

    if found_place().ranks == 1:
        return arguments
    if multirun:
        raise UserError("a multirun starts its jobs' processes by itself (trainer=ddp): leave torchrun or srun out")
    _, overrides = _split_flags(arguments)
    trainer = compose_config(name, [text for text in overrides if not text.startswith("hydra")]).trainer
    wanted(trainer)
    end_with_parent()
    meet(trainer)
    folder = ranks.from_first(lambda: output_folder(name, overrides))
    return [*arguments, f"hydra.run.dir={quoted(folder)}"]


def _meet_in_job(config: DictConfig) -> None:
    """Meet the other tasks of a launcher's job (submitit); they know the job's folder already."""
    if _Failures.here is not None or config.trainer.processes != "outside":
        return
    from clipkit.runs.launch import meet

    meet(config.trainer)


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's flags, with their values, and its overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            flags.append(argument)
            skip = not skip and argument in TAKE_A_VALUE
        else:
            overrides.append(argument)
    return flags, overrides


def _prepare(name: str, arguments: list[str], multirun: bool) -> list[str]:
    """Quote literal values, check everything, and fix the run's folder where `name` or `resume` does."""
    from clipkit.runs.validate import check_command_line

    flags, given = _split_flags(arguments)
    overrides = [_literal(argument) for argument in given]
    if any(flag in FLAGS_THAT_ONLY_SHOW for flag in flags):
        return arguments
    values = {text.partition("=")[0]: _unquote(text.partition("=")[2]) for text in overrides}
    overrides = _continue_run(name, overrides, values)
    own_configs = any(flag in ("--config-dir", "-cd") or flag.startswith("--config-dir=") for flag in flags)
    if not own_configs:  # a folder of the user's own may add options that only Hydra can see
        overrides = check_command_line(name, overrides)
    if values.get("name") not in (None, "null") and "hydra.run.dir" not in values and not multirun:
        overrides.append(f"hydra.run.dir={quoted(f'outputs/{name}/' + values['name'])}")
    return [*flags, *overrides]


def _continue_run(name: str, overrides: list[str], values: dict[str, str]) -> list[str]:
    """`resume=PATH` continues a run in its own folder, with the command line that started it."""
    resume = values.get("resume")
    if name != "train" or resume in (None, "null", "auto"):
        return overrides
    assert resume is not None
    path = Path(resume)
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    record = folder / "run.json"
    if not path.exists():
        raise UserError(f"resume={resume}: no such run folder or checkpoint")
    if not record.is_file():
        raise UserError(
            f"resume={resume}: {folder} holds no run (no run.json); a run folder or a .ckpt in one is needed"
        )
    try:
        before = list(json.loads(record.read_text())["overrides"])
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{record} is damaged: {error}") from error
    said = {text.partition("=")[0] for text in overrides}
    drop = {*said, "hydra.run.dir", "name", "overwrite"}
    kept = [text for text in before if text.partition("=")[0] not in drop]
    return [*kept, *overrides, f"hydra.run.dir={quoted(str(folder))}"]


def _literal(argument: str) -> str:
    """`key=value` with the value quoted if the key takes free text; `labels` is split at commas."""
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in LITERAL or value in ("", "null") or value[0] in "[{'\"":
        return argument
    if key in LISTS:
        return f"{key}=[{','.join(quoted(part.strip()) for part in value.split(','))}]"
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """A text as a value on the command line that means just itself."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("\\${", "${").replace("\\'", "'").replace("\\\\", "\\")
    return text


def _say(error: UserError) -> int:
    if not _first_has_left():
        print(f"error: {error}", file=sys.stderr)
    return 2


def _first_has_left() -> bool:
    """Process 0 speaks for all that torchrun or srun have started: the others are told to end once it has left.

    They wait for that, with their exit status in hand; who is not told has found something that process 0 has not.
    """
    other = any(os.environ.get(key, "0") != "0" for key in ("RANK", "SLURM_PROCID"))
    if not other or "CLIPKIT_PARENT" in os.environ:
        return False
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    end = time.monotonic() + AFTER_FIRST_S
    while not told and time.monotonic() < end:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to the end: the status has to be this process's own
    return bool(told)


def _launcher_says(error: Exception) -> str | None:
    """What keeps a launcher from its work, in words; None for any other error."""
    text = str(error)
    if type(error).__name__ == "MissingConfigException" and "hydra/launcher" in text:
        hint = '\nsubmitit_slurm and submitit_local come with: pip install "clipkit-train[slurm]"'
        return text.partition("Config search path")[0].strip() + hint
    if type(error).__module__.startswith("submitit"):
        return text  # a job was ended, or could not be submitted
    return "SLURM's srun is not on PATH: submit from a machine of the cluster" if '"srun"' in text else None


def _let_launcher_requeue(status: int) -> None:
    """SIGUSR2 is how submitit warns of a job's end: what it would have done at once follows now that all is saved."""
    handler = signal.getsignal(signal.SIGUSR2)
    if status == 128 + signal.SIGUSR2 and callable(handler):
        handler(signal.SIGUSR2, None)


def _met() -> Any:
    """`clipkit.ranks` if it has been loaded; else this process is alone, and need not wait for torch to say so."""
    return sys.modules.get("clipkit.ranks")


def _note_failure(config: DictConfig, message: str) -> None:
    """Leave the reason in the run's folder if the run did not come far enough to do so itself."""
    ranks = _met()
    folder = Path(str(OmegaConf.select(config, "run_dir") or ""))
    if (ranks is None or ranks.rank() == 0) and folder.is_dir() and not (folder / "run.json").exists():
        with suppress(OSError):
            (folder / "run.json").write_text(json.dumps({"status": "failed", "error": message}, indent=1) + "\n")
