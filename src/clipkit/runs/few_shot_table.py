"""The runs of a few-shot curve, read from their folders, as one table."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from clipkit.metrics.spread import Spread, spread
from clipkit.runs.sweeps import key_of

__all__ = ["MEASURES", "ZERO_SHOT", "Curve", "Job", "Outcome", "as_shots", "shots_label"]

ZERO_SHOT = "zero_shot"
MEASURES = ("top1", "mean_per_class", "f1_weighted", "calibration_error")
DECIDES = ("data", "backbone")  # choices that all runs of one curve have to share


class Job(NamedTuple):
    """One run; `shots` None means all training pictures, or none needed (zero-shot)."""

    approach: str
    shots: int | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its metrics, or in words why there are none."""

    job: Job
    folder: Path | None
    metrics: dict[str, float]
    trouble: str = ""
    choices: tuple[str, ...] = ()
    wall_s: float = 0.0


@dataclass(frozen=True)
class Curve:
    """All outcomes, of planned jobs and of others that lie in the same folder from before."""

    folder: Path
    outcomes: tuple[Outcome, ...]

    @classmethod
    def read(cls, folder: Path, planned: Sequence[Job]) -> "Curve":
        """What is in `folder`; planned jobs that have left nothing there are named as not begun."""
        found = {outcome.job: outcome for outcome in _outcomes(folder)}
        for job in planned:
            found.setdefault(job, Outcome(job, None, {}, "not begun"))
        first = {name: place for place, name in reversed([*enumerate(job.approach for job in found)])}
        order = sorted(found, key=lambda job: (job.approach != ZERO_SHOT, first[job.approach], _last(job), job.seed))
        return cls(folder, tuple(found[job] for job in order))

    @property
    def approaches(self) -> list[str]:
        """All but zero-shot."""
        return list(dict.fromkeys(o.job.approach for o in self.outcomes if o.job.approach != ZERO_SHOT))

    @property
    def shots(self) -> list[int | None]:
        """In rising order, all pictures last."""
        trained = {o.job.shots: _last(o.job) for o in self.outcomes if o.job.approach != ZERO_SHOT}
        return sorted(trained, key=trained.__getitem__)

    @property
    def places(self) -> list[str]:
        """Parts that all finished runs have answered ("test", or "test/seen" and "test/unseen"), else those of any."""
        answered = [{_parts(name)[0] for name in o.metrics} for o in self.outcomes if o.metrics]
        every = {place for places in answered for place in places}
        common = {place for place in every if all(place in places for places in answered)}
        return sorted(common or every)

    @property
    def troubles(self) -> list[Outcome]:
        """Jobs without a result."""
        return [outcome for outcome in self.outcomes if outcome.trouble]

    def of(self, approach: str, shots: int | None) -> list[Outcome]:
        """The outcomes of all seeds; zero-shot's for any number of shots."""
        return [
            o for o in self.outcomes if o.job.approach == approach and shots in (o.job.shots, *_any(approach, shots))
        ]

    def spread(self, approach: str, shots: int | None, metric: str) -> Spread | None:
        """Over the seeds that finished; None if none did."""
        values = [o.metrics[metric] for o in self.of(approach, shots) if metric in o.metrics]
        return spread(values) if values else None

    def differing_choices(self) -> list[str]:
        """Choices of data and backbone that some runs have and others have not: their means would mix two things."""
        known = [set(o.choices) for o in self.outcomes if o.folder is not None and not o.trouble]
        every = {choice for choices in known for choice in choices}
        return sorted(choice for choice in every if not all(choice in choices for choices in known))

    def table(self) -> pd.DataFrame:
        """One row for each approach, number of shots, place and measure; a row without a finished run has n = 0."""
        rows = []
        names = sorted({name for o in self.outcomes for name in o.metrics}, key=_order)
        for approach in [ZERO_SHOT, *self.approaches]:
            for shots in self.shots if approach != ZERO_SHOT else [None]:
                asked = self.of(approach, shots)
                for name in names if asked else []:
                    place, measure = _parts(name)
                    seeds = [o.job.seed for o in asked if name in o.metrics]
                    told = self.spread(approach, shots, name) or Spread(math.nan, math.nan, math.nan, math.nan, 0)
                    rows.append(
                        {
                            "approach": approach,
                            "shots": "" if approach == ZERO_SHOT else "all" if shots is None else str(shots),
                            "part": place,
                            "metric": measure,
                            "mean": told.mean,
                            "std": told.std,
                            "low_95": told.low,
                            "high_95": told.high,
                            "n": told.n,
                            "planned": len(asked),
                            "seeds": " ".join(map(str, seeds)),
                        }
                    )
        return pd.DataFrame(rows)

    def grid(self, place: str, measure: str = "top1") -> tuple[list[str], list[list[str]]]:
        """One place as people read it: approaches × shots, the best at the most shots on top; header and texts."""
        name, shots = f"{place}/{measure}", self.shots
        rows = [[a, *[self._cell(a, k, name) for k in shots]] for a in self.ranked(name)]
        if self.of(ZERO_SHOT, None):
            rows.append(["zero-shot", *[self._cell(ZERO_SHOT, k, name) for k in shots or [None]]])
        return ["", *(shots_label(k) for k in shots)] if shots else ["", "mean"], rows

    def ranked(self, metric: str) -> list[str]:
        """All approaches, the best at the most shots first."""

        def last(approach: str) -> float:
            told = [self.spread(approach, shots, metric) for shots in self.shots]
            return next((-found.mean for found in reversed(told) if found is not None), math.inf)

        return sorted(self.approaches, key=last)

    def _cell(self, approach: str, shots: int | None, name: str) -> str:
        found, asked = self.spread(approach, shots, name), len(self.of(approach, shots))
        if found is None:
            return "–" if asked == 0 else f"– (0 of {asked})"
        text = f"{found.mean:.3f}" if math.isnan(found.std) else f"{found.mean:.3f} ± {found.std:.3f}"
        if approach == ZERO_SHOT and found.n == asked == 1:
            return text
        return text if found.n == asked else f"{text} ({found.n} of {asked})"


def as_shots(text: str) -> int | None:
    """A value of `data.shots` as the command line has it."""
    return None if text in ("null", "None") else int(text)


def shots_label(shots: int | None) -> str:
    """As people read it."""
    return "all pictures" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def _outcomes(folder: Path) -> list[Outcome]:
    found = []
    for record in sorted(folder.glob("*/run.json")):
        try:
            about = json.loads(record.read_text())
            said = {key_of(text): text.partition("=")[2] for text in about["overrides"]}
            approach = said["approach"]
            shots = None if approach == ZERO_SHOT else as_shots(said["data.shots"])
            job = Job(approach, shots, int(said["seed"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no run of a curve: a planned one will be missing
        metrics, trouble = _result(record.parent, about)
        choices = tuple(
            f"{key}={said[key]}" for key in said if key.split(".")[0].split("/")[0] in DECIDES and key != "data.shots"
        )
        wall = about.get("wall_s", 0) + about.get("earlier_wall_s", 0)
        found.append(Outcome(job, record.parent, metrics, trouble, choices, wall))
    return found


def _result(folder: Path, about: dict[str, Any]) -> tuple[dict[str, float], str]:
    if about.get("status") != "finished":
        reason = f": {about['error']}" if about.get("error") else ""
        return {}, f"{about.get('status', 'unknown')}{reason}"
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        return {}, f"metrics.json cannot be read: {error}"
    told = {name: float(value) for name, value in metrics.items() if _parts(name)[1] in MEASURES}
    wanted = {name: value for name, value in told.items() if not name.startswith("val/")} or told
    return wanted, "" if wanted else "its data has no labels to classify"


def _parts(name: str) -> tuple[str, str]:
    place, _, measure = name.rpartition("/")
    return place, measure


def _order(name: str) -> tuple[str, int]:
    place, measure = _parts(name)
    return place, MEASURES.index(measure)


def _last(job: Job) -> float:
    return math.inf if job.shots is None else job.shots


def _any(approach: str, shots: int | None) -> tuple[int | None, ...]:
    return (shots,) if approach == ZERO_SHOT else ()
