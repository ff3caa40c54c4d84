"""The command `anomaly benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly.pipelines.cli.checks import bundle_at
from anomaly.pipelines.cli.options import DeviceOption, SetOption

__all__ = ["benchmark"]


def benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Archive, such as zhanglab.")],
    data: Annotated[Path, typer.Option(help="Its folder.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run; default: runs/benchmark-NAME."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle to measure, a folder or a shipped name; default: train one."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML configuration; default: configs/NAME-64.yaml."),
    ] = None,
    baseline_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of every baseline network; default: training.steps."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train, calibrate and compute every figure on a labelled archive, baselines included."""
    from anomaly.pipelines import benchmark as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder

    source = bundle_at(bundle)
    resolved = stage.benchmark_config(name, data, config, source, set_ or [])
    stage.benchmark(
        RunFolder(out or Path("runs") / f"benchmark-{name}"),
        name,
        resolved,
        pick_device(device),
        bundle_folder=source,
        baseline_steps=baseline_steps,
    )
