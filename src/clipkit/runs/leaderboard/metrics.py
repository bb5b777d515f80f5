"""Which metric ranks runs, which way, and which ones are shown beside it.

Used by: clipkit.runs.leaderboard
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from itertools import product

from clipkit.errors import UserError

__all__ = ["choose_columns", "choose_metric", "single", "smaller_is_better"]

PLACES = ("test", "test/seen", "test/unseen", "val", "val/seen", "all")  # whose answers are shown first
MEASURES = (
    "top1", "i2t_recall@1", "t2i_recall@1", "recall", "mean_per_class", "f1_weighted", "top5", "i2t_recall@5",
    "t2i_recall@5", "calibration_error", "loss",
)  # fmt: skip
USUAL = {f"{place}/{measure}": rank for rank, (measure, place) in enumerate(product(MEASURES, PLACES))}
SHOWN = 6
LISTED = 20  # in a message
SMALLER = re.compile(
    r"(^|[_@])(loss|rank|error|ece|nll|brier|perplexity|drop|distance|difference|fpr\d*|false_alarms|follows_word|"
    r"said_word_after|seconds|s|mb)([_@]|$)"
)
NO_MEASURES = re.compile(r"_(low|high)$|(^|/)(pictures|n)$")  # ends of intervals, and what is only counted


def smaller_is_better(metric: str) -> bool:
    """By the name: of losses, errors, ranks, distances, drops and times less is better, of all else more."""
    return SMALLER.search(metric.rpartition("/")[2]) is not None


@cache
def single(metric: str) -> bool:
    """Whether it is a measure of its own: neither an interval's end nor a count."""
    return NO_MEASURES.search(metric) is None


def choose_metric(runs: Sequence[Mapping[str, float]], asked: str | None) -> str | None:
    """The metric that ranks.

    Args:
        runs: the metrics of every run that has a result.
        asked: by name; None: what most runs have, the first of `PLACES` × `MEASURES` where several are equal.

    Returns:
        A full name; None if there is no metric at all.

    Raises:
        UserError: no run has the one that was asked for.
    """
    counts = _counts(runs)
    if asked is None:
        return next(iter(_by_use(counts)), None)
    if asked not in counts:
        raise UserError(f"metric={asked}: {_unknown(asked, counts)}")
    return asked


def choose_columns(runs: Sequence[Mapping[str, float]], asked: Sequence[str] | None, *, first: str) -> list[str]:
    """The metrics to show: `first`, and those that were asked for by name or pattern, else the main ones.

    Raises:
        UserError: a name or pattern that fits no metric.
    """
    counts = _counts(runs)
    if asked is None:
        main = [name for name in _by_use(counts) if name.rpartition("/")[2] in MEASURES and name != first]
        return sorted([first, *main[: SHOWN - 1]], key=lambda name: (name != first, _preference(name)))
    chosen = [first]
    for pattern in asked:
        found = [name for name in sorted(counts, key=_preference) if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(f"columns: {_unknown(pattern, counts)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def _counts(runs: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """How many runs have each measure; intervals' ends and counts are none."""
    counts: Counter[str] = Counter()
    for names, often in Counter(map(tuple, runs)).items():  # few runs differ in what they were asked
        counts.update({name: often for name in names if single(name)})
    return counts


def _by_use(counts: Mapping[str, int]) -> list[str]:
    """Measures, those of most runs first, and among these the usual ones."""
    return sorted(counts, key=lambda name: (not _usual(name), -counts[name], _preference(name)))


def _usual(name: str) -> bool:
    place, _, measure = name.rpartition("/")
    return place in PLACES and measure in MEASURES[:6]


def _preference(name: str) -> tuple[int, str]:
    return USUAL.get(name, len(USUAL)), name


def _unknown(asked: str, known: Iterable[str]) -> str:
    names = sorted(known, key=_preference)
    near = [name for name in names if name.endswith(f"/{asked}")][:3]
    near = near or get_close_matches(asked, names, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    listed = ", ".join(names[:LISTED]) + (f", … ({len(names)} in all)" if len(names) > LISTED else "")
    return f"no finished run has it; {hint}" + (f"there are {listed}" if names else "none has any metric")
