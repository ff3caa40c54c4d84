"""The command `anomaly node`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.options import DeviceOption

__all__ = ["node"]


def node(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML settings of the node: docs/node.yaml.")
    ],
    device: DeviceOption = "auto",
) -> None:
    """Listen for scans by DICOM, score each study that is complete, send the results."""
    from anomaly.pacs.client.destinations import destination
    from anomaly.pipelines import node as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.dicom import write_dicom

    settings = stage.load_settings(config)
    stage.run_node(
        settings,
        pick_device(device),
        objects=lambda run, config, processes: list(
            write_dicom(run, config, settings.objects, processes=processes).paths
        ),
        destination=destination(settings.destination, calling=settings.calling or settings.ae_title)
        if settings.destination
        else None,
    )
