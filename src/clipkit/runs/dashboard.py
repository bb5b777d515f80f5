"""The layout of a dashboard: `conf/shared/dashboard.yaml`, for W&B as a workspace, for TensorBoard as custom scalars.

Run: python -m clipkit.runs.dashboard ENTITY/PROJECT                      writes the workspace "clipkit" (network)
     python -m clipkit.runs.dashboard ENTITY/PROJECT val/top1 optimizer.lr …   a sweep's objective and parameters
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from clipkit.errors import UserError
from clipkit.runs.choices import conf_root

__all__ = ["custom_scalars", "main", "sections", "workspace"]

AXIS = "optimiser_step"
OBJECTIVE = "val/recall"


def sections() -> dict[str, list[dict[str, Any]]]:
    """The sections by name: panels with a `title` and what they show."""
    found: Any = OmegaConf.to_container(OmegaConf.load(conf_root() / "shared/dashboard.yaml"))
    return {str(name): list(panels) for name, panels in found.items()}


def custom_scalars() -> dict[str, dict[str, list[Any]]]:
    """The panels with lines, and the bars as points, as TensorBoard's `add_custom_scalars` takes them."""
    layout: dict[str, dict[str, list[Any]]] = {}
    for name, panels in sections().items():
        for panel in panels:
            shown = [metric for metric in panel.get("lines", panel.get("bars", [])) if not metric.startswith("best/")]
            if shown:
                layout.setdefault(name, {})[panel["title"]] = ["Multiline", [f"^{metric}$" for metric in shown]]
    return layout


def workspace(
    entity: str, project: str, *, name: str = "clipkit", objective: str = OBJECTIVE, parameters: Sequence[str] = ()
) -> Any:
    """A W&B workspace, not saved yet.

    Args:
        entity, project: where it belongs.
        name: of the view.
        objective: a sweep's, for parallel coordinates and importance.
        parameters: a sweep's, as keys of the configuration ("optimizer.lr"); none: those of the layout.

    Raises:
        UserError: `wandb-workspaces` is not installed.
    """
    try:
        panels: Any = import_module("wandb_workspaces.reports.v2")
        spaces: Any = import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise UserError(f"a W&B workspace needs {error.name}: pip install wandb-workspaces") from error

    made = [
        spaces.Section(
            name=section,
            panels=[_panel(panels, panel, objective, parameters) for panel in content],
            is_open=True,
        )
        for section, content in sections().items()
    ]
    settings = spaces.WorkspaceSettings(x_axis=AXIS)
    return spaces.Workspace(entity=entity, project=project, name=name, sections=made, settings=settings)


def _panel(panels: Any, panel: Mapping[str, Any], objective: str, parameters: Sequence[str]) -> Any:
    if "lines" in panel:
        return panels.LinePlot(title=panel["title"], x=AXIS, y=panel["lines"])
    if "bars" in panel:
        return panels.BarPlot(title=panel["title"], metrics=panel["bars"])
    if "parallel" in panel:
        keys = [panels.Config(key) for key in parameters or panel["parallel"]]
        columns = [*keys, panels.SummaryMetric(objective)]
        made = [panels.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
        return panels.ParallelCoordinatesPlot(title=panel["title"], columns=made)
    if "importance" in panel:
        return panels.ParameterImportancePlot(with_respect_to=objective)
    if "table" in panel:
        return panels.WeavePanelSummaryTable(table_name=panel["table"])
    return panels.MediaBrowser(title=panel["title"], media_keys=panel["pictures"])


def main(arguments: Sequence[str]) -> int:
    """Save the workspace; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    entity, _, project = arguments[0].partition("/")
    try:
        if not entity or not project:
            raise UserError(f"{arguments[0]}: ENTITY/PROJECT is expected, as it stands in the address of the project")
        objective = arguments[1] if len(arguments) > 1 else OBJECTIVE
        made = workspace(entity, project, objective=objective, parameters=arguments[2:])
        try:
            print(made.save().url)
        except Exception as error:  # of W&B's own, or of the network: a dozen kinds
            raise UserError(
                f"W&B did not save it ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); "
                "it needs the network and `wandb login`"
            ) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
