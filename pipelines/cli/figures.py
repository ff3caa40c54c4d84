"""The command `anomaly figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.options import DataOption, RunArgument

__all__ = ["figures"]


def figures(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Default: RUN/figures."),
    ] = None,
    scans: Annotated[
        int, typer.Option(min=2, max=64, help="On the overlay sheet, half of them flagged.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws those scans, and bootstraps.")] = 0,
    data: DataOption = None,
) -> None:
    """Make figures for a paper: overlays, ROC, scores, p-values, training; PDF and PNG."""
    from anomaly.pipelines import figures as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    config = run_config(folder, [], data)
    written, left_out = stage.make_figures(folder, config, out, scans=scans, seed=seed)
    for path in written:
        typer.echo(f"{path}")
    for name, reason in left_out.items():
        typer.echo(f"{name} left out: {reason}")
    typer.echo("Research use only. Not a diagnosis.")
