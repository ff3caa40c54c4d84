"""The command `anomaly refit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.options import DataOption, DeviceOption, RunArgument, SetOption

__all__ = ["refit"]


def refit(
    run: RunArgument,
    bundle: Annotated[
        Path,
        typer.Option(help="Bundle whose network is used: a folder or a shipped name."),
    ],
    data: DataOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit a new detector on the network of a bundle, which may be of an earlier version."""
    from anomaly.pipelines import refit as stage
    from anomaly.pipelines.context import pick_device, run_config
    from anomaly.pipelines.run import RunFolder
    from anomaly.store.bundle_files import find_bundle

    folder = RunFolder(run)
    resolved = run_config(folder, set_ or [], data, stage="refit")
    stage.refit(folder, find_bundle(bundle), resolved, pick_device(device))
    typer.echo(f"the bundle is {folder.bundle}; next: anomaly calibrate {run}")
