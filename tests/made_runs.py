"""Run folders made by hand, with what a leaderboard reads of them."""

import json
from pathlib import Path
from typing import Any

__all__ = ["make_run"]


def make_run(
    folder: Path,
    *,
    metrics: Any = None,
    approach: str = "mlp",
    seed: int | None = 0,
    recipe: str | None = "r",
    hour: int = 0,
    command: str = "train",
    said: tuple[str, ...] = (),
    **about: Any,
) -> Path:
    """A finished run, if nothing else is said. Texts are written as they are: as metrics, or `text` as the record."""
    chosen = {"approach": approach, "backbone": "tiny", "data": "synthetic", "experiment": None}
    overrides = [f"approach={approach}", *said, *([] if seed is None else [f"seed={seed}"])]
    record = {
        "status": "finished",
        "overrides": overrides,
        "command": " ".join([f"python -m clipkit.{command}", *overrides]),
        "choices": chosen,
        "recipe": recipe,
        "seed": seed,
        "started": f"2026-01-01T{hour:02d}:00:00+0000",
        "wall_s": 10.0,
        "peak_memory_mb": 1500,
        **about,
    }
    text = record.pop("text", None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record) if text is None else text)
    if metrics is not None:
        (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return folder
