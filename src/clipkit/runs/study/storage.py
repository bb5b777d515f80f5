"""The study of a sweep: which trials there are, and who is at work on which. Optuna's tables, in one SQLite file.

Used by: clipkit.sweep

A trial is claimed under a lock, so that processes together make exactly the number asked for. Whoever claims holds a
lock on a file of its own as long as it lives; a trial whose owner is gone is claimed again, with the number, the folder
and the values that it has.
"""

import fcntl
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from clipkit.errors import UserError
from clipkit.runs.study.drawing import Drawing
from clipkit.runs.study.plan import Plan
from clipkit.runs.study.space import Value

__all__ = ["Claim", "Study", "open_study"]

PLAN, ERROR = "clipkit_plan", "clipkit_error"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Claim:
    """A trial that this process is at work on.

    Args:
        number: of the trial, from 0.
        id: in the database.
        params: its parameters, by key.
    """

    number: int
    id: int
    params: dict[str, Value]


class Study:
    """The trials of a sweep, as one of the processes that work on them sees them.

    Args:
        study: Optuna's.
        storage: what it is kept in.
        plan: what it searches.
        folder: of the sweep.
        drawing: of new trials' parameters.
        hang_up: closes the connections to the database.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        plan: Plan,
        folder: Path,
        *,
        drawing: Drawing,
        hang_up: Callable[[], None],
    ) -> None:
        self._hang_up = hang_up
        self.study, self.storage, self.plan = study, storage, plan
        self.folder, self.drawing = folder, drawing
        self._claims = FileLock(folder / ".claims.lock")
        self._own: IO[str] | None = None

    def claim(self, asked: int) -> Claim | None:
        """The next trial, its parameters drawn; None if `asked` are done or at work elsewhere."""
        with speaking(self.folder), self._claims:
            trials = self.trials()
            done = sum(self.is_done(one) for one in trials)
            running = [one for one in trials if one.state is TrialState.RUNNING]
            lost = [one for one in running if not self._is_alive(one)]
            if lost and done < asked:
                return self._own_it(Claim(lost[0].number, lost[0]._trial_id, dict(lost[0].params)))
            if done + len(running) >= asked:
                return None
            number = len(trials)
            params = self.drawing.draw(self.plan, number, trials)
            used = {one.key: one.distribution() for one in self.plan.parameters if one.key in params}
            new = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=used)
            made = self.storage.create_new_trial(self.study._study_id, template_trial=new)  # all in one transaction
            return self._own_it(Claim(number, made, params))

    def _own_it(self, claim: Claim) -> Claim:
        (self._place() / f"trial_{claim.number}").write_text(self._owner())
        return claim

    def report(self, claim: Claim, epoch: int, value: float) -> None:
        """Write down what a trial has reached after an epoch."""
        with speaking(self.folder):
            self.storage.set_trial_intermediate_value(claim.id, epoch, value)

    def trials(self) -> list[FrozenTrial]:
        """All of them, in order."""
        found: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found

    @staticmethod
    def is_done(trial: FrozenTrial) -> bool:
        """Whether a trial has come to its end: with values, pruned, or by a mistake of its own."""
        return trial.state in DONE or (trial.state is TrialState.FAIL and ERROR in trial.user_attrs)

    def finish(self, claim: Claim, values: Sequence[float] | None, state: TrialState, error: str | None = None) -> None:
        """Write a trial's end down; of one that is pruned, `values` is the last that it reported."""
        with speaking(self.folder):
            if error is not None:
                self.storage.set_trial_user_attr(claim.id, ERROR, error)
            self.storage.set_trial_state_values(claim.id, state, values)

    def counts(self) -> tuple[int, int]:
        """Trials that are done, and trials that living processes are at work on."""
        with speaking(self.folder):
            trials = self.trials()
        running = [one for one in trials if one.state is TrialState.RUNNING and self._is_alive(one)]
        return sum(map(self.is_done, trials)), len(running)

    def _place(self) -> Path:
        place = self.folder / ".owners"
        place.mkdir(exist_ok=True)
        return place

    def _owner(self) -> str:
        if self._own is None:
            self._own = (self._place() / f"{os.getpid()}-{time.time_ns()}").open("w")
            fcntl.flock(self._own, fcntl.LOCK_EX)
        return Path(self._own.name).name

    def _is_alive(self, trial: FrozenTrial) -> bool:
        """Whether the process that claimed a trial still holds its lock."""
        try:
            name = (self.folder / ".owners" / f"trial_{trial.number}").read_text()
        except FileNotFoundError:
            return False  # killed while it claimed: nobody else claims meanwhile
        if self._own is not None and name == Path(self._own.name).name:
            return True
        try:
            with (self.folder / ".owners" / (name or "nobody")).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Give up the own lock, and the connections."""
        self._hang_up()
        if self._own is not None:
            with suppress(OSError):
                os.unlink(self._own.name)
            self._own.close()
            self._own = None


def open_study(folder: Path, plan: Plan, settings: Any, *, seed: int) -> Study:
    """The study of a sweep's folder, made if there is none.

    Args:
        folder: of the sweep.
        plan: what it searches; one that was begun with another is refused.
        settings: `config.sweep`.
        seed: of the run.

    Raises:
        UserError: the database is damaged, locked, full, or another plan's; it is left as it is.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    place, url = folder / "study.db", settings.storage
    directions = [one.direction for one in plan.objectives]
    if settings.pruner not in ("median", "none") or settings.sampler not in ("tpe", "random"):
        raise UserError("sweep.pruner is one of median, none, and sweep.sampler one of tpe, random")
    with speaking(url or place), FileLock(folder / ".claims.lock"):
        if url is None:
            _check_file(place, wait=settings.wait)
        engine = {"connect_args": {"timeout": settings.wait}} if url is None or url.startswith("sqlite") else {}
        storage = optuna.storages.RDBStorage(url or f"sqlite:///{place.absolute()}", engine_kwargs=engine)
        if storage.engine.dialect.name == "sqlite":
            event.listen(storage.engine, "connect", _fast)
            storage.engine.dispose()
        kept = optuna.storages.get_storage(storage)
        study = optuna.create_study(
            storage=kept,
            sampler=optuna.samplers.RandomSampler(),  # never asked: trials come with their parameters (`Drawing`)
            study_name=folder.name if url is not None else "sweep",
            directions=directions,
            load_if_exists=True,
        )
        before = study.user_attrs.get(PLAN)
        if before is None:
            study.set_user_attr(PLAN, plan.described())
        elif before != plan.described():
            raise UserError(
                f"{url or place} is the study of another space, base or objective: give the same as before, or "
                "choose another name"
            )
    return Study(
        study,
        kept,
        plan,
        folder,
        drawing=Drawing(settings.sampler, seed=seed, startup_trials=settings.startup_trials, directions=directions),
        hang_up=storage.engine.dispose,
    )


@contextmanager
def speaking(place: Path | str) -> Iterator[None]:
    """What a database says, for a person."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).splitlines()[0]
        hint = "nothing in it was changed"
        if "locked" in reason:
            hint = f"another program holds it; {hint}. Try again, or wait longer with sweep.wait=600"
        elif "full" in reason or "readonly" in reason or "unable to open" in reason:
            hint = "make room, or let it be written"
        elif "malformed" in reason or "not a database" in reason:
            hint = f"it is damaged; {hint}. The trials' folders have their results; move the file away to begin anew"
        raise UserError(f"the study {place}: {reason}: {hint}") from error


def _check_file(place: Path, *, wait: float) -> None:
    """Read a database through before anything may write to it."""
    if not place.is_file() or place.stat().st_size == 0:
        return
    connection = sqlite3.connect(f"file:{place.absolute()}?mode=ro", uri=True, timeout=wait)
    try:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        connection.close()
    if said != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed ({said})")


def _fast(connection: Any, record: Any) -> None:
    """One write to the disk a trial instead of ten: a killed process loses nothing, a power failure the last trial."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
