"""The command `anomaly sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sign"]


def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Its folder.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private Ed25519 key, in PEM.")],
) -> None:
    """Sign a bundle, so that others can see who made it (--signer) and that nothing was changed."""
    from anomaly.store.signatures import sign_bundle

    typer.echo(f"{sign_bundle(bundle, key)} written")
