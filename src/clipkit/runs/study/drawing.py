"""Which values a new trial takes, and whether it is hopeless: Optuna's samplers and pruner, asked in memory.

The database is read once a trial, and written once when it begins and once when it ends, beside what it reports.

Used by: clipkit.sweep
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from clipkit.runs.study.plan import Plan
from clipkit.runs.study.space import Parameter, Value

__all__ = ["Drawing"]


class Drawing:
    """Draws trial n from (seed, n) and the trials that are finished: one sweep that was killed and one that was not
    draw the same.

    Args:
        sampler: "tpe" (over all parameters together: Watanabe, arXiv 2304.11127) or "random".
        seed: of the sweep.
        startup_trials: drawn at random first.
        directions: of the objectives.
    """

    def __init__(
        self, sampler: str, *, seed: int, startup_trials: int, directions: list[Literal["maximize", "minimize"]]
    ) -> None:
        self.sampler, self.seed, self.startup_trials = sampler, seed, startup_trials
        self._study = optuna.create_study(directions=directions, sampler=RandomSampler(seed=0))
        self._known: set[int] = set()
        self._pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)

    def draw(self, plan: Plan, number: int, trials: Sequence[FrozenTrial]) -> dict[str, Value]:
        """The parameters of trial `number`, by key; `trials` are all before it."""
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._known:
                self._known.add(trial.number)
                self._study.add_trial(trial)
        sampler, asked = self._sampler(number), self._study.ask()
        frozen = self._study.get_trials(deepcopy=False)[-1]

        def sample(parameters: Sequence[Parameter]) -> dict[str, Value]:
            space = {one.key: one.distribution() for one in parameters}
            found = sampler.sample_relative(self._study, frozen, space) if space else {}
            alone = [key for key in space if key not in found]
            found |= {key: sampler.sample_independent(self._study, frozen, key, space[key]) for key in alone}
            return {key: found[key] for key in space}

        params = plan.draw(sample)
        self._study.tell(asked, state=TrialState.FAIL)  # samplers do not look at those
        return params

    def is_hopeless(self, looks: Mapping[int, float]) -> bool:
        """Whether a trial with these values by epoch is worse than half of the complete ones were at the last of them.

        Compared with those that were finished when this process last drew one.
        """
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values=dict(looks))
        return self._pruner.prune(self._study, trial)

    def _sampler(self, number: int) -> BaseSampler:
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(n_startup_trials=self.startup_trials, seed=seed, multivariate=True)
