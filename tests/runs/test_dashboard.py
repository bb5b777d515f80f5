"""The layout of dashboards names only what runs log, and becomes a W&B workspace."""

import re
from pathlib import Path

import pandas as pd
import pytest

from clipkit.runs import dashboard

ON_OTHER_RUNS = re.compile(  # of a GPU, a sigmoid loss, an ended penalty; of classifiers; of stages
    r"perf/(peak_gpu_memory_mb|tflops_per_s|mfu)|train/(logit_bias|penalty)|val/(top1|f1_weighted)|stage|epoch"
)


def test_every_metric_of_the_layout_is_one_that_runs_log(tiny_run: Path) -> None:
    logged = set(pd.read_csv(tiny_run / "metrics.csv")["name"])
    panels = [panel for section in dashboard.sections().values() for panel in section]
    named = {metric for panel in panels for metric in [*panel.get("lines", []), *panel.get("bars", [])]}
    assert len(named) > 30
    unknown = {name for name in named if name.removeprefix("best/") not in logged}
    assert {name for name in unknown if not ON_OTHER_RUNS.fullmatch(name.removeprefix("best/"))} == set()


def test_tensorboards_layout_matches_whole_names() -> None:
    layout = dashboard.custom_scalars()
    assert set(layout) == {"Training", "Validation", "Test", "Performance"}
    patterns = [tag for charts in layout.values() for _, tags in charts.values() for tag in tags]
    assert "^val/recall$" in patterns
    assert all(re.match(pattern, pattern[1:-1]) for pattern in patterns)


def test_a_workspace_has_the_sections_and_the_parameters_of_a_sweep() -> None:
    pytest.importorskip("wandb_workspaces.workspaces")
    made = dashboard.workspace("me", "mine", objective="val/top1", parameters=["optimizer.lr"])
    spec = made._to_model().model_dump_json(by_alias=True)
    assert [section.name for section in made.sections] == list(dashboard.sections())
    for text in (
        "optimiser_step",
        "train/loss_step",
        "test/top1",
        "config:optimizer.value.lr",
        "val/top1",
        "tables/examples",
    ):
        assert text in spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["mine"], "ENTITY/PROJECT is expected"), (["/mine"], "ENTITY/PROJECT is expected")],
)
def test_a_wrong_place_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(arguments) == 2
    assert message in capsys.readouterr().err
