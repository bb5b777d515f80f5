"""Detectors fitted to the training pictures of known classes, each with its threshold; as a folder, without pickle.

    fitted = Fitted.fit(known, labels, held_out, false_alarms=0.05)
    novel = fitted.scores(seen)["knn"] > fitted.thresholds["knn"]

What is kept are the pictures as the model saw them: loading fits the detectors again, which always ends alike.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clipkit.discovery.detector import Detector
from clipkit.discovery.detectors import make_detectors
from clipkit.discovery.rank_average import RankAverage
from clipkit.discovery.signals import Signals
from clipkit.errors import UserError
from clipkit.metrics import threshold_at

__all__ = ["RANK_AVERAGE", "Fitted"]

FORMAT = 1
RANK_AVERAGE = RankAverage.name
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """Fitted detectors, and the line of each beyond which a picture counts as novel.

    Args:
        detectors: by name; the rank average of all is among them where there are two or more.
        thresholds: by the same names.
        options: of the detectors that were given some.
        false_alarms: share of the held-out known pictures that lies beyond a threshold, at most.
        known, labels: the training pictures of the known classes.
        held_out: known pictures that set the thresholds, and nothing else.
        notes: what had to be said.
    """

    detectors: dict[str, Detector | RankAverage]
    thresholds: dict[str, float]
    options: dict[str, dict[str, Any]]
    false_alarms: float
    known: Signals
    labels: NDArray[np.int64]
    held_out: Signals
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        known: Signals,
        labels: NDArray[np.int64],
        held_out: Signals,
        *,
        names: Sequence[str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        false_alarms: float = 0.05,
    ) -> "Fitted":
        """Fit on known training pictures, set thresholds on other known ones. No other picture is looked at.

        Args:
            known: training pictures.
            labels: [N] their classes.
            held_out: other known pictures, at least one.
            names: of detectors; None: all, and their rank average.
            options: arguments by detector.
            false_alarms: share of known pictures that may be taken for novel, above 0 and below 1.

        Raises:
            UserError: an unknown detector or option, a share that cannot be, or too few pictures.
        """
        if not 0 < false_alarms < 1:
            raise UserError(f"false_alarms={false_alarms}: a share above 0 and below 1 is expected")
        asked = None if names is None else [name for name in names if name != RANK_AVERAGE]
        given = {name: dict(values) for name, values in (options or {}).items()}
        if not len(held_out):
            raise UserError("thresholds come from known pictures that detectors were not fitted to, and there are none")
        made = make_detectors(asked, **given)
        detectors: dict[str, Detector | RankAverage] = {
            name: detector.fit(known, labels) for name, detector in made.items()
        }
        notes = [note for detector in made.values() for note in detector.notes]
        if len(made) > 1 and (names is None or RANK_AVERAGE in names):
            detectors[RANK_AVERAGE] = RankAverage(list(made.values()), held_out)
        elif names is not None and RANK_AVERAGE in names:
            raise UserError(f"{RANK_AVERAGE} is the mean of several detectors: name two or more beside it")
        if not detectors:
            raise UserError("no detector is named (null: all)")
        thresholds = {name: threshold_at(scores, false_alarms) for name, scores in _scores(detectors, held_out).items()}
        kept = {name: values for name, values in given.items() if name in made}
        return cls(detectors, thresholds, kept, false_alarms, known, labels, held_out, tuple(notes))

    def scores(self, seen: Signals) -> dict[str, Scores]:
        """[M] of each detector, higher is more novel."""
        return _scores(self.detectors, seen)

    @property
    def fingerprint(self) -> str:
        """Changes when the pictures, options or thresholds do."""
        digest = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `known.safetensors` and `detectors.json`; `UserError` if that cannot be done."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self._arrays(), folder / "known.safetensors")
            content = {"format": FORMAT, **self._about(), "fingerprint": self.fingerprint}
            (folder / "detectors.json").write_text(json.dumps(content, indent=1) + "\n")
        except (OSError, SafetensorError) as error:
            raise UserError(f"the detectors could not be written to {folder}: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "Fitted":
        """What `save` wrote.

        Raises:
            UserError: nothing is there, it is damaged, or of another format.
        """
        try:
            about = json.loads((folder / "detectors.json").read_text())
            if about["format"] != FORMAT:
                raise UserError(f"{folder}: detectors of format {about['format']}; this clipkit reads format {FORMAT}")
            arrays = load_file(folder / "known.safetensors")
            known, held_out = (_unpacked(arrays, part) for part in ("known", "held_out"))
            found = cls.fit(
                known,
                arrays["labels"],
                held_out,
                names=about["detectors"],
                options=about["options"],
                false_alarms=about["false_alarms"],
            )
            whole = cls(**{**found.__dict__, "thresholds": dict(about["thresholds"])})
            damaged = whole.fingerprint != about["fingerprint"]
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} holds no fitted detectors: python -m clipkit.discover action=fit leaves some"
            ) from error
        except UserError:
            raise
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} holds no complete detectors: fit again ({error})") from error
        if damaged:
            raise UserError(f"{folder} is damaged: its fingerprint is not the one in detectors.json; fit again")
        return whole

    def _about(self) -> dict[str, Any]:
        return {
            "detectors": list(self.detectors),
            "options": self.options,
            "thresholds": self.thresholds,
            "false_alarms": self.false_alarms,
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        parts = {"known": self.known, "held_out": self.held_out}
        found = {
            f"{part}.{f.name}": getattr(signals, f.name) for part, signals in parts.items() for f in fields(Signals)
        }
        return {name: np.ascontiguousarray(array) for name, array in {**found, "labels": self.labels}.items()}


def _scores(detectors: Mapping[str, Detector | RankAverage], seen: Signals) -> dict[str, Scores]:
    """[M] of each detector; the rank average is that of all the others, which need not score again."""
    found = {name: one.score(seen) for name, one in detectors.items() if not isinstance(one, RankAverage)}
    for name, one in detectors.items():
        if isinstance(one, RankAverage):
            found[name] = one.average(list(found.values()))
    return found


def _unpacked(arrays: Mapping[str, NDArray[Any]], part: str) -> Signals:
    return Signals(*(arrays[f"{part}.{field.name}"] for field in fields(Signals)))
