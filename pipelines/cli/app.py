"""The registry of commands, in the order of `anomaly --help`.

To add one, write its module and a line here, or call ``app.command()`` on a function of your own.
Stages are imported inside the commands: torch and MONAI take seconds, `--help` must not.
"""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly.pipelines.cli.benchmark import benchmark
from anomaly.pipelines.cli.calibrate import calibrate
from anomaly.pipelines.cli.demo import demo
from anomaly.pipelines.cli.dicom import dicom
from anomaly.pipelines.cli.doctor import doctor
from anomaly.pipelines.cli.evaluate import evaluate
from anomaly.pipelines.cli.export import export
from anomaly.pipelines.cli.export_model import export_model
from anomaly.pipelines.cli.feedback import feedback
from anomaly.pipelines.cli.figures import figures
from anomaly.pipelines.cli.node import node
from anomaly.pipelines.cli.prepare import prepare
from anomaly.pipelines.cli.query import query
from anomaly.pipelines.cli.refit import refit
from anomaly.pipelines.cli.report import report
from anomaly.pipelines.cli.retry import retry
from anomaly.pipelines.cli.score import score
from anomaly.pipelines.cli.sign import sign
from anomaly.pipelines.cli.status import status
from anomaly.pipelines.cli.train import train
from anomaly.pipelines.cli.verify import verify
from anomaly.version import __version__

__all__ = ["COMMANDS", "app"]

COMMANDS = (
    prepare,
    train,
    refit,
    calibrate,
    score,
    dicom,
    status,
    verify,
    query,
    export,
    export_model,
    feedback,
    retry,
    evaluate,
    report,
    figures,
    demo,
    benchmark,
    node,
    sign,
    doctor,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn what normal scans look like, and find what is not. "
    "Research use only. Not a diagnosis.",
)

for command in COMMANDS:
    app.command()(command)


def _print_version(asked_for: bool) -> None:
    if asked_for:
        typer.echo(f"anomaly {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Learn what normal scans look like, and find what is not.

    Research use only. Not a diagnosis.
    """
