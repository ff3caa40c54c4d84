"""The command `anomaly report`."""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly.errors import ConfigError
from anomaly.pipelines.cli.checks import refuse_idle
from anomaly.pipelines.cli.options import DataOption, RunArgument

__all__ = ["report"]


def report(
    run: RunArgument,
    images: Annotated[bool, typer.Option(help="Show the images.")] = True,
    max_images: Annotated[
        int | None,
        typer.Option(min=0, help="Of at most so many scans, most unusual first; default: 500."),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the images into the page, to copy it alone.")
    ] = False,
    pdf: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Instead of the page, one study as RUN/studies/STUDY.pdf: its pseudonym, or that "
            "of a scan in it.",
        ),
    ] = None,
    data: DataOption = None,
) -> None:
    """Write the worklist with heatmaps as an HTML page with its images beside it."""
    from anomaly.pipelines import report as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    refuse_idle({"--max-images": max_images is not None and not images})
    most = 500 if max_images is None else max_images
    config = run_config(folder, [], data)
    if pdf is not None:
        from anomaly.pipelines.study import study_pdf

        if single_file:
            raise ConfigError("a PDF is a single file: leave --single-file away")
        typer.echo(study_pdf(folder, config, pdf, images=images, max_images=most))
        return
    page = stage.report(folder, config, images=images, max_images=most, single_file=single_file)
    typer.echo(f"report: {page}")
