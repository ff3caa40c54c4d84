"""The command `anomaly dicom`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.checks import destination_at, refuse_idle
from anomaly.pipelines.cli.options import CallingOption, DataOption, RunArgument, SendOption

__all__ = ["dicom"]


def dicom(
    run: RunArgument,
    objects: Annotated[
        str,
        typer.Option(
            help="Kinds, with commas between: report, overlay, segmentation, heatmap, "
            "parametric_map, contours."
        ),
    ] = "report,overlay",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Default: RUN/dicom."),
    ] = None,
    send: SendOption = None,
    calling: CallingOption = None,
    data: DataOption = None,
) -> None:
    """Write the verdicts as DICOM objects: a report a scan, images of flagged scans alone."""
    from anomaly.pipelines import dicom as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    refuse_idle({"--calling": calling is not None and (send is None or "@" not in send)})
    target = None if send is None else destination_at(send, calling)
    kinds = stage.kinds_of(objects)
    written = stage.write_dicom(folder, run_config(folder, [], data), kinds, out)
    typer.echo(f"{len(written.paths)} objects in {out or folder.dicom}: they name patients.")
    if target is not None:
        from anomaly.pipelines.pacs import store_results

        store_results(target, written.paths)
