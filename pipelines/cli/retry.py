"""The command `anomaly retry`."""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly.pipelines.cli.options import RunArgument

__all__ = ["retry"]


def retry(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Reason of the rows, as `anomaly status` prints.")],
) -> None:
    """Forget the parts that hold rows with a reason; `anomaly score` makes them again."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    parts, rows = stage.retry(folder, reason)
    typer.echo(
        f"{rows} rows with reason {reason!r} in {parts} parts: run `anomaly score {run}` to make "
        "them again"
    )
