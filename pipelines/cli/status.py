"""The command `anomaly status`."""

from __future__ import annotations

import typer

from anomaly.pipelines.cli.options import RunArgument

__all__ = ["status"]


def status(run: RunArgument) -> None:
    """Say how far scoring is: done, failed by reason, scans a second, time left."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    for line in stage.status(RunFolder(run)):
        typer.echo(line)
