"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.files import CONFIGS

__all__ = [
    "DEMO_CONFIG",
    "AlphaOption",
    "BundleOption",
    "CallingOption",
    "ConfigOption",
    "DataOption",
    "DeviceOption",
    "PrintOption",
    "RunArgument",
    "SendOption",
    "SetOption",
    "SignerOption",
]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, such as training.steps=500."
    ),
]
PrintOption = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
]
CallingOption = Annotated[
    str | None,
    typer.Option(
        metavar="TITLE", help="Our own AE title, for --send AET@host:port; default: ANOMALY."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the scans are now; default: where they were when `prepare` listed them.",
    ),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Flag at this false-alarm rate; default: the one that the bundle was calibrated for. "
        "Of what is scored already, the flags alone are raised anew.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BundleOption = Annotated[
    Path | None,
    typer.Option(help="Bundle: a folder, or the name of a shipped one. Default: the run's own."),
]
SignerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Public Ed25519 key, in PEM: refuse a bundle that it has not signed."
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration.")]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Run the network by this file of `anomaly export-model`, not PyTorch."
    ),
]
SendOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Send DICOM results: https://host/dicom-web, AET@host:port or folder:/some/where.",
    ),
]
DEMO_CONFIG = CONFIGS / "phantom-64.yaml"
