"""What several commands ask before they begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anomaly.errors import AnomalyError, ConfigError

if TYPE_CHECKING:
    from anomaly.config import Config
    from anomaly.pacs.client.destinations import Destination
    from anomaly.pipelines.run import RunFolder

__all__ = ["bundle_at", "destination_at", "fetch", "printed", "refuse_idle"]

_INSTEAD = {
    "--query": "it says what to fetch, and goes with --dicomweb URL",
    "--out": "it names the run of a folder of new scans: RUN is one already",
    "--data": "it says where the run's own scans are now: new scans are named by --scans",
    "--calling": "it is our AE title, and goes with --send AET@host:port",
    "--max-images": "--no-images shows none",
    "--shard": "--ray deals out all shards itself",
}


def bundle_at(bundle: Path | None) -> Path | None:
    """Return the folder of a bundle that an option names; None where it names none."""
    from anomaly.store.bundle_files import find_bundle

    return None if bundle is None else find_bundle(bundle)


def destination_at(text: str, calling: str | None) -> Destination:
    """Return the destination that `--send` names, called by our AE title."""
    from anomaly.pacs.client.destinations import destination

    return destination(text) if calling is None else destination(text, calling=calling)


def refuse_idle(options: Mapping[str, bool]) -> None:
    """Refuse options that would have no effect."""
    for name, idle in options.items():
        if idle:
            raise ConfigError(f"{name} has no effect here: {_INSTEAD[name]}")


def fetch(run: RunFolder, url: str, query: list[str]) -> int:
    """Fetch what matches; return how many images could not be had."""
    from anomaly.pacs.client.dicomweb import DicomWeb
    from anomaly.pipelines.pacs import fetch_studies, query_of

    fetched = fetch_studies(DicomWeb(url), query_of(query), run.spool)
    if not fetched.listed:
        raise AnomalyError(
            f"no image of the archive matches {', '.join(query)}: ask for something else"
        )
    return fetched.failed.total()


def printed(config: Config, asked_for: bool) -> bool:
    """Print the configuration where it is asked for; return whether it was."""
    if asked_for:
        from anomaly.config import dump

        typer.echo(dump(config), nl=False)
    return asked_for
