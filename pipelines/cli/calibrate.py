"""The command `anomaly calibrate`."""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly.pipelines.cli.checks import bundle_at
from anomaly.pipelines.cli.options import (
    BundleOption,
    DataOption,
    DeviceOption,
    RunArgument,
    SetOption,
)

__all__ = ["calibrate"]


def calibrate(
    run: RunArgument,
    bundle: BundleOption = None,
    split: Annotated[str, typer.Option(help="Split of the manifest to use.")] = "calibration",
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="Adapt the detector to this site: one half of the normal scans moves what is "
            "normal, the other half calibrates. At least 50 scans.",
        ),
    ] = False,
    data: DataOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Learn from held-out normal scans what a score is worth; the bundle can flag from then on."""
    from anomaly.pipelines import calibrate as stage
    from anomaly.pipelines.context import overrides_name, pick_device, run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    resolved = run_config(folder, set_ or [], data, stage="calibrate")
    source = bundle_at(bundle) or folder.bundle
    is_own = source.resolve() == folder.bundle.resolve()
    if is_own and not overrides_name(set_ or [], "alpha"):
        resolved = stage.at_known_rate(resolved, source)
    stage.calibrate(folder, resolved, source, split, pick_device(device), adapt=adapt)
    typer.echo(f"the bundle is {folder.bundle}; next: anomaly score {run}")
