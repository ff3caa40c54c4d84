"""The command `anomaly export-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_model"]


def export_model(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, a run, or a shipped name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .onnx.")],
) -> None:
    """Write the network of a bundle as an ONNX file, with input gradients: `score --model`.

    From pixels in the network's frame to log densities and residual maps, without PyTorch.
    """
    from anomaly.errors import ConfigError
    from anomaly.pipelines.run import RunFolder
    from anomaly.store.bundle import read_bundle
    from anomaly.store.bundle_files import find_bundle
    from anomaly.store.onnx_model import write_model

    if out.suffix != ".onnx":
        raise ConfigError(f"the file is {out}: expected a name that ends in .onnx")
    own = RunFolder(bundle).bundle
    source = read_bundle(own if own.exists() else find_bundle(bundle))
    error = write_model(source, out)
    typer.echo(
        f"{out}: the network of bundle {source.hash[:12]}; ONNX Runtime differs from PyTorch by at "
        f"most {error:.1g} of the largest value. Research use only. Not a diagnosis."
    )
