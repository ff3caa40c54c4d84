"""The command `anomaly demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.options import DEMO_CONFIG, ConfigOption, DeviceOption, SetOption

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo is replaced.")],
    config: ConfigOption = DEMO_CONFIG,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Go the whole road on synthetic chest radiographs."""
    from anomaly.pipelines import demo as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(out)
    stage.demo(folder, config, set_ or [], pick_device(device))
    typer.echo(f"Figures: {folder.metrics}. Open {folder.report}")
