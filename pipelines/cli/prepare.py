"""The command `anomaly prepare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.checks import printed
from anomaly.pipelines.cli.options import ConfigOption, PrintOption, RunArgument, SetOption

__all__ = ["prepare"]


def prepare(
    run: RunArgument,
    config: ConfigOption,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of scans; overrides data.root."),
    ] = None,
    set_: SetOption = None,
    print_config: PrintOption = False,
) -> None:
    """Read a folder of scans, say what can be used, split it by patient."""
    from anomaly.config import load_config
    from anomaly.pipelines import prepare as stage
    from anomaly.pipelines.run import RunFolder

    resolved = load_config(config, set_ or [])
    if data is not None:
        resolved = replace(resolved, data=replace(resolved.data, root=data))
    if not printed(resolved, print_config):
        stage.prepare(RunFolder(run), resolved)
        typer.echo(f"next: anomaly train {run}")
