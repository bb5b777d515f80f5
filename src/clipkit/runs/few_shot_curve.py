"""Approaches × shots × seeds as one multirun, and the table, plot and page of all its runs.

Zero-shot knows neither shots nor, where the test pictures are fixed, seeds: it is one run beside the product.

Run: python -m clipkit.train -m experiment=few_shot_curve
     python -m clipkit.train -m experiment=few_shot_curve approach=contrastive data.shots=1,4 data=folder data.root=DIR
     python -m clipkit.train -m experiment=few_shot_curve hydra.sweep.dir=FOLDER resume=auto   finish or extend FOLDER
"""

import shlex
from itertools import product
from pathlib import Path

from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.combinations import check_combination
from clipkit.runs.command_line import quoted, unquoted
from clipkit.runs.compose import compose_config
from clipkit.runs.few_shot_page import show_curve, write_curve
from clipkit.runs.few_shot_table import ZERO_SHOT, Curve, Job, as_shots
from clipkit.runs.sweeps import Sweep, Together, key_of

__all__ = ["FewShotCurve"]

SWEPT = ("approach", "data.shots", "seed")
PLACE = ("hydra.sweep.dir", "hydra.sweep.subdir")


class FewShotCurve(Together):
    """One curve: one data set, one backbone, one recipe."""

    def __init__(self, sweep: Sweep) -> None:
        others = [key for key, values in sweep.values.items() if key not in SWEPT and len(values) > 1]
        if others:
            hint = " (each seed draws its own pictures: say seed=… instead)" if "data.split_seed" in others else ""
            raise UserError(
                f"several values of {', '.join(others)}: one curve varies {', '.join(SWEPT)} alone{hint}; "
                "start one curve for each"
            )
        self.sweep = sweep
        self.folder = Path(sweep.folder)
        self.approaches, shots, self.seeds = (list(dict.fromkeys(sweep.values[key])) for key in SWEPT)
        self.shots = sorted(shots, key=lambda text: as_shots(text) or 10**9)
        self._common = [text for text in sweep.overrides if key_of(text) not in (*SWEPT, *PLACE)]
        self._zero_shot_seeds, self._without_zero_shot = self._plan_zero_shot()

    def rounds(self) -> list[list[str]]:
        """Zero-shot first: it finds what is wrong with data and backbone, and is soon done."""
        trained = [name for name in self.approaches if name != ZERO_SHOT]
        lines = []
        if self._zero_shot_seeds:
            common = [text for text in self._common if not key_of(text).startswith("approach.")]
            lines.append(self._line(common, [ZERO_SHOT], self.shots[:1], self._zero_shot_seeds, "zero_shot"))
        if trained:
            name = "${hydra:runtime.choices.approach}-${data.shots}-shots"
            lines.append(self._line(self._common, trained, self.shots, self.seeds, name))
        return lines

    def close(self) -> None:
        """Write `few_shot_curve.csv`, `.png` and `.html`, and print the table."""
        trained = [name for name in self.approaches if name != ZERO_SHOT]
        planned = [Job(ZERO_SHOT, None, int(seed)) for seed in self._zero_shot_seeds]
        planned += [Job(a, as_shots(k), int(s)) for a, k, s in product(trained, self.shots, self.seeds)]
        curve = Curve.read(self.folder, planned)
        notes = [self._without_zero_shot] if self._without_zero_shot else []
        write_curve(curve, notes=notes, command=self.how_to_continue())
        show_curve(curve, notes=notes)

    def how_to_continue(self) -> str:
        said = [text for text in self.sweep.overrides if key_of(text) not in (*PLACE, "resume", "overwrite")]
        parts = [*self.sweep.flags, *map(unquoted, said), f"hydra.sweep.dir={self.folder}", "resume=auto"]
        return f"python -m clipkit.{self.sweep.command} {shlex.join(parts)}"

    def _line(
        self, common: list[str], approaches: list[str], shots: list[str], seeds: list[str], name: str
    ) -> list[str]:
        swept = (f"{key}={','.join(values)}" for key, values in zip(SWEPT, (approaches, shots, seeds), strict=True))
        place = (f"hydra.sweep.dir={quoted(str(self.folder))}", f"hydra.sweep.subdir={name}-seed-${{seed}}")
        return [*self.sweep.flags, *common, *swept, *place]

    def _plan_zero_shot(self) -> tuple[list[str], str]:
        """Seeds to ask zero-shot with (one, unless they choose the test pictures); or why it cannot be asked."""
        ours = [text for text in self._common if not key_of(text).startswith(("approach.", "hydra"))]
        config = compose_config(
            self.sweep.command, [*ours, f"approach={ZERO_SHOT}", f"data.shots={self.shots[0]}", f"seed={self.seeds[0]}"]
        )
        problems = check_combination(config)
        if problems:
            return [], f"no zero-shot line: {problems[0]}"
        divided = OmegaConf.select(config, "data.records.split_seed") is not None
        return (self.seeds if divided else self.seeds[:1]), ""
