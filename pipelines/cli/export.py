"""The command `anomaly export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.options import RunArgument

__all__ = ["export"]


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv or .xlsx.")],
    with_identifiers: Annotated[
        bool,
        typer.Option(
            "--with-identifiers",
            help="Name paths, patients and UIDs too: for the owner of the scans alone.",
        ),
    ] = False,
) -> None:
    """Write the scores for a spreadsheet: pseudonyms, unless identifiers are asked for."""
    from anomaly.pipelines import score as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    rows = stage.export_scores(folder, run_config(folder, []), out, identifiers=with_identifiers)
    typer.echo(f"{rows} rows in {out}. Research use only. Not a diagnosis.")
    if with_identifiers:
        typer.echo("This file names patients: do not share it.")
