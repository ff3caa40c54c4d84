"""The command `anomaly feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.errors import ConfigError
from anomaly.pipelines.cli.options import RunArgument

__all__ = ["feedback"]


def feedback(
    run: RunArgument,
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="Pseudonym of a scan."),
    ] = None,
    opinion: Annotated[
        str | None,
        typer.Argument(metavar="agree|disagree"),
    ] = None,
    comment: Annotated[str, typer.Option(help="Stays in feedback.sqlite; may be empty.")] = "",
    reader: Annotated[str, typer.Option(help="Who says so; any name.")] = "",
    merge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Verdicts saved from the report page, as JSON."),
    ] = None,
) -> None:
    """Note what a reader thinks of a result; ask with `anomaly query`, table `feedback`."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    if merge is not None:
        if key or opinion or comment or reader:
            raise ConfigError("--merge FILE says it all: leave KEY, opinion and options away")
        added, known = stage.merge_feedback(folder, merge)
        typer.echo(f"{added} verdicts merged, {known} were there already")
    elif key is None or opinion is None:
        raise ConfigError("feedback needs KEY and agree or disagree, or --merge FILE")
    else:
        reading = stage.give_feedback(folder, key, opinion, reader=reader, comment=comment)
        typer.echo(f"{reading.opinion} with {reading.key} noted")
