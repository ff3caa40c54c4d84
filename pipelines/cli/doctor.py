"""The command `anomaly doctor`."""

from __future__ import annotations

import typer

from anomaly.errors import ConfigError
from anomaly.pipelines.cli.checks import bundle_at
from anomaly.pipelines.cli.options import BundleOption, SignerOption

__all__ = ["doctor"]


def doctor(bundle: BundleOption = None, signer: SignerOption = None) -> None:
    """Say what this machine can decode and compute with, and whether a bundle is intact."""
    from anomaly.pipelines import doctor as stage
    from anomaly.store.signatures import check_signature

    source = bundle_at(bundle)
    if signer is not None:
        if source is None:
            raise ConfigError("--signer goes with --bundle: it says who must have signed it")
        check_signature(source, signer)
    lines, healthy = stage.doctor(source)
    for line in lines:
        typer.echo(line)
    if not healthy:
        raise typer.Exit(1)
