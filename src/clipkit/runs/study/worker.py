"""What a process of a sweep does: claim a trial, make it, say how it ended; until there are as many as were asked for.

Used by: clipkit.sweep
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.trial import TrialState

from clipkit.errors import UserError
from clipkit.runs import build
from clipkit.runs.choices import group_of
from clipkit.runs.command_line import unquoted
from clipkit.runs.study.child_runs import Runs
from clipkit.runs.study.heads import ALONE, Heads
from clipkit.runs.study.plan import Plan, suits_heads
from clipkit.runs.study.storage import ERROR, Claim, Study
from clipkit.runs.sweeps import key_of

__all__ = ["Worker", "trial_folder"]

LOOKS = 6  # of a trial's validations, so many are compared with other trials'
FAIL_AT_FIRST = 3  # trials that fail before any has succeeded end the sweep


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial leaves its results."""
    return folder / "trials" / f"{number:04d}"


class Worker:
    """Makes trials.

    Args:
        plan: what they share.
        study: where they are claimed.
        config: of the sweep.
        stopped: raises where somebody has told the process to end; asked after each epoch.
    """

    def __init__(self, plan: Plan, study: Study, config: DictConfig, *, stopped: Callable[[], None]) -> None:
        self.plan, self.study, self.config, self.stopped = plan, study, config, stopped
        self.heads: Heads | None = None
        self.runs = Runs(plan.objectives[0].metric, ["report=false", *plan.logging], stopped=stopped)

    def work(self, on_trial: Callable[[int, Mapping[str, Any]], None]) -> None:
        """Until `sweep.trials` are done, or others are at work on the last ones.

        Args:
            on_trial: told of each trial's number and its record.

        Raises:
            UserError: the first three trials have failed.
        """
        began, settings = time.monotonic(), self.config.sweep
        try:
            while settings.minutes is None or time.monotonic() - began < 60 * settings.minutes:
                trial = self.study.claim(settings.trials)
                if trial is None:
                    return
                said = self._make(trial)
                on_trial(trial.number, said)
                self.stopped()
                if said["state"] == "failed":
                    self._give_up()
        finally:
            self.runs.stop()

    def _make(self, trial: Claim) -> dict[str, Any]:
        """One trial, from its parameters to its end; returns what is to be said of it."""
        started = time.monotonic()
        params = trial.params
        chosen = self.plan.chosen(params)
        rest = self.plan.overrides(params, self.plan.config(chosen))
        folder = trial_folder(self.study.folder, trial.number)
        about = {"number": trial.number, "sweep": str(self.study.folder), "params": params}
        said: dict[str, Any] = {"params": params, "state": "complete", "values": None}
        try:
            metrics = self._answer(trial, chosen, rest, folder, about)
            values = self._values(metrics)
            self.study.finish(trial, values, TrialState.COMPLETE)
            said["values"] = values
        except optuna.TrialPruned as stop:
            self.study.finish(trial, stop.args, TrialState.PRUNED)
            said["state"] = "pruned"
        except UserError as error:
            self.study.finish(trial, None, TrialState.FAIL, str(error))
            said |= {"state": "failed", "error": str(error)}
        return said | {"seconds": time.monotonic() - started}

    def _answer(
        self, trial: Claim, chosen: list[str], rest: list[str], folder: Path, about: dict[str, Any]
    ) -> dict[str, float]:
        config, in_process = self._config(chosen, rest)
        overrides = [*self.plan.plain_base, *chosen, *rest]
        if not in_process:
            return self.runs.run(overrides, folder, trial=about, on_epoch=self._judge(trial, 1))
        self.heads = self.heads or Heads(self.config)
        stages = config.approach.get("stages") or {}
        epochs = max([stage.epochs for stage in stages.values()], default=1)
        return self.heads.run(
            config,
            [*overrides, *([ALONE] if stages else []), "trainer.threads=1"],
            folder,
            choices=self._choices(chosen),
            trial=about,
            on_epoch=self._judge(trial, max(1, epochs // LOOKS)),
        )

    def _config(self, chosen: list[str], rest: list[str]) -> tuple[DictConfig, bool]:
        """The trial's configuration with its stages, and whether it is made in this process."""
        config = self.plan.config(chosen).copy()
        with open_dict(config):
            for text in rest:
                key, _, value = unquoted(text).partition("=")
                OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v, force_add=True)
        build.resolve_stages(config, [*self.plan.plain_base, *chosen, *rest])
        in_process = suits_heads(config)
        if in_process:
            with open_dict(config):
                config.trainer.threads = 1
                if config.approach.get("stages"):
                    config.approach.search = {"seeds": 1}
        return config, in_process

    def _choices(self, chosen: list[str]) -> dict[str, Any]:
        """The options of the groups: the sweep's, and this trial's own."""
        from hydra.core.hydra_config import HydraConfig

        from clipkit.runs.record import choices

        given = [text for text in [*self.plan.plain_base, *chosen] if group_of(key_of(text))]
        own = {key_of(text): text.partition("=")[2] for text in given}
        known = choices() if HydraConfig.initialized() else {}
        return {**{key: value for key, value in known.items() if key != "sweep"}, **own}

    def _judge(self, trial: Claim, every: int) -> Callable[[int, dict[str, float]], None]:
        """Hands an epoch's validation to Optuna; raises where the trial is hopeless or the sweep is told to stop."""
        metric, alone = self.plan.objectives[0].metric, len(self.plan.objectives) == 1
        looks: dict[int, float] = {}

        def judge(epoch: int, scores: dict[str, float]) -> None:
            self.stopped()
            value = scores.get(metric)
            if not alone or value is None or epoch % every or self.config.sweep.pruner == "none":
                return
            if math.isfinite(value):
                looks[epoch] = value
                self.study.report(trial, epoch, value)
            if looks and self.study.drawing.is_hopeless(looks):
                raise optuna.TrialPruned(looks[max(looks)])

        return judge

    def _values(self, metrics: Mapping[str, float]) -> list[float]:
        missing = [one.metric for one in self.plan.objectives if one.metric not in metrics]
        if missing:
            known = ", ".join(name for name in metrics if not name.endswith(("_low", "_high")))
            raise UserError(f"sweep.objectives: a trial leaves no {missing[0]}; it has {known}")
        return [float(metrics[one.metric]) for one in self.plan.objectives]

    def _give_up(self) -> None:
        """End where nothing works: the first trials have all failed."""
        trials = self.study.trials()
        failed = [one for one in trials if one.state is TrialState.FAIL]
        if len(failed) >= FAIL_AT_FIRST and len(failed) == sum(one.state.is_finished() for one in trials):
            reason = failed[-1].user_attrs.get(ERROR, "")
            raise UserError(f"the first {len(failed)} trials have all failed; the last one said: {reason}")
