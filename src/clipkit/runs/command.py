"""The one shape of all commands: `python -m clipkit.COMMAND key=value …`.

Wraps `hydra.main`: texts and paths are taken literally, mistakes become one message and exit status 2, and under
`--multirun` a failed job is recorded while the others run.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clipkit.errors import UserError
from clipkit.runs.command_line import prepare
from clipkit.runs.endings import LOST, Failed, Interrupted
from clipkit.runs.meeting import first_has_left, meet_others

__all__ = ["command"]

JOBLIB = "hydra/launcher=joblib"


class _Failures:
    """The exit statuses of the jobs that failed in this process; None in one that a launcher has started."""

    here: list[int] | None = None


def command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a configuration into a command; `name` is its primary configuration file."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            try:
                sys.exit(_run(name, task, sys.argv[1:]))
            except KeyboardInterrupt:  # before any job has begun
                print("\nstopped", file=sys.stderr)
                sys.exit(130)

        main.__doc__ = task.__doc__
        return main

    return decorate


def _run(name: str, task: Callable[[DictConfig], Any], arguments: list[str]) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads stall on a busy machine
    from hydra.core.hydra_config import HydraConfig

    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    flags = [a for a in arguments if a.startswith("-")]
    failures = _Failures.here = []
    whole = None  # what the jobs of a multirun are together
    try:
        if any(flag in ("--help", "-h") for flag in flags):
            from clipkit.runs.help import help_text

            print(help_text(name))
            return 0
        arguments = prepare(name, arguments, multirun)
        if multirun:
            from clipkit.runs.sweeps import together

            whole = together(name, arguments)
        if name == "train":
            arguments = meet_others(name, arguments, multirun)
    except UserError as error:
        return _say(error)

    def job(config: DictConfig) -> Any:  # a launcher may pickle it and run it on another machine
        try:
            with open_dict(config):
                config.run_dir = HydraConfig.get().runtime.output_dir
            if _Failures.here is None and HydraConfig.get().runtime.choices.get("hydra/launcher") == "joblib":
                from clipkit.runs.grid_jobs import run_apart

                return run_apart(config)
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
            if not first_has_left() and str(stop):
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
                sys.exit(LOST)
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
    status = 0
    try:
        for line in [arguments] if whole is None else whole.rounds():
            if multirun:
                from clipkit.runs.grid_jobs import share_machine

                line = share_machine(line)
            status = _hydra(name, job, line) or status
            if status == 130:
                break
    except UserError as error:
        return _say(error)
    except SystemExit:
        if whole is not None:
            print(f"the rest of this multirun: {whole.how_to_continue()}", file=sys.stderr)
        raise
    ranks = _met()
    if ranks is not None and not failures and not status:
        ranks.leave()
    if whole is not None and status != 130:
        try:
            whole.close()
        except UserError as error:
            return _say(error)
    if failures and multirun:
        print(f"{len(failures)} job(s) of this multirun failed; their folders say why in run.json", file=sys.stderr)
    return status or (0 if not failures else 2 if multirun else failures[0])


def _hydra(name: str, job: Callable[[DictConfig], Any], arguments: list[str]) -> int:
    """Hand a command line over to Hydra; returns the exit status of what went wrong outside of the jobs here, or 0."""
    import hydra

    sys.argv = [sys.argv[0], *arguments]
    main = hydra.main(version_base="1.3", config_path="pkg://clipkit.conf", config_name=name)(job)
    try:
        if JOBLIB in arguments:
            from clipkit.runs.grid_jobs import waiting_for_jobs

            with waiting_for_jobs():
                main()
        else:
            main()
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
    return 0


def _meet_in_job(config: DictConfig) -> None:
    """Meet the other tasks of a launcher's job (submitit); they know the job's folder already."""
    if _Failures.here is not None or config.trainer.processes != "outside":
        return
    from clipkit.runs.meeting import meet

    meet(config.trainer)


def _say(error: UserError) -> int:
    if not first_has_left():
        print(f"error: {error}", file=sys.stderr)
    return 2


def _launcher_says(error: Exception) -> str | None:
    """What keeps a launcher from its work, in words; None for any other error."""
    text = str(error)
    if type(error).__name__ == "MissingConfigException" and "hydra/launcher" in text:
        hint = (
            '\njoblib comes with: pip install "clipkit-train[joblib]"'
            '\nsubmitit_slurm and submitit_local with: pip install "clipkit-train[slurm]"'
        )
        return text.partition("Config search path")[0].strip() + hint
    if type(error).__module__.startswith("submitit"):
        return text  # a job was ended, or could not be submitted
    if type(error).__name__ == "TerminatedWorkerError":
        return "a process of joblib that watches jobs was ended from outside; all jobs were ended"
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
        from hydra.core.hydra_config import HydraConfig

        about: dict[str, Any] = {"status": "failed", "error": message}
        if HydraConfig.initialized():
            about["overrides"] = list(HydraConfig.get().overrides.task)
        with suppress(OSError):
            (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")
