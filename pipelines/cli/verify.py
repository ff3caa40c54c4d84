"""The command `anomaly verify`."""

from __future__ import annotations

import typer

from anomaly.pipelines.cli.options import RunArgument

__all__ = ["verify"]


def verify(run: RunArgument) -> None:
    """Look whether every file of a run is what was written there; name those that are damaged."""
    from anomaly.pipelines import verify as stage
    from anomaly.pipelines.run import RunFolder

    lines, intact = stage.verify(RunFolder(run))
    for line in lines:
        typer.echo(line)
    if not intact:
        raise typer.Exit(1)
