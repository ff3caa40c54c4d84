"""The command `anomaly train`."""

from __future__ import annotations

import typer

from anomaly.pipelines.cli.checks import printed
from anomaly.pipelines.cli.options import (
    DataOption,
    DeviceOption,
    PrintOption,
    RunArgument,
    SetOption,
)

__all__ = ["train"]


def train(
    run: RunArgument,
    data: DataOption = None,
    set_: SetOption = None,
    print_config: PrintOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train on the normal scans of the train split; resume where a checkpoint is."""
    from anomaly.pipelines import train as stage
    from anomaly.pipelines.context import pick_device, run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    resolved = run_config(folder, set_ or [], data)
    if not printed(resolved, print_config):
        place = pick_device(device)
        with stage.processes(place):
            result = stage.train(folder, resolved, place)
        if result.finished:
            typer.echo(f"the bundle is {folder.bundle}; next: anomaly calibrate {run}")
