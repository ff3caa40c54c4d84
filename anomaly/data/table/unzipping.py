"""Zip files among the scans, each listed as a folder of its members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anomaly.data.readers.isolation import Lost, Workers
from anomaly.data.readers.zips import Listing, is_zip, list_members
from anomaly.data.table.manifest import ManifestRow
from anomaly.data.table.media import unread_row
from anomaly.errors import ScanError

__all__ = ["lost_rows", "members_of_zips"]


def members_of_zips(
    root: Path,
    paths: Sequence[str],
    processes: Workers,
    site_key: bytes,
    rows_of: dict[str, list[ManifestRow]],
) -> list[str]:
    """Replace zip files by their members; refused members get a row in `rows_of`.

    A zip file and a folder cannot have the same name, so their paths do not collide.
    """
    zips = [path for path in paths if is_zip(Path(path))]
    plain = [path for path in paths if not is_zip(Path(path))]
    for path, listing in processes.map(partial(_list_zip, root), zips):
        if isinstance(listing, Lost):
            rows_of[path] = lost_rows(path, listing, site_key)
        elif isinstance(listing, ScanError):
            rows_of[path] = [unread_row(path, site_key).skipped(listing.reason, listing.message)]
        else:
            plain += [f"{path}/{member}" for member in listing.members]
            rows_of[path] = [
                unread_row(f"{path}/{name}", site_key).skipped(
                    reason, f"{name!r} in {path}: {reason}"
                )
                for name, reason in listing.refused
            ]
    return sorted(plain)


def _list_zip(root: Path, relative: str) -> Listing | ScanError:
    try:
        return list_members(root / relative)
    except ScanError as error:
        return error


def lost_rows(path: str, lost: Lost, site_key: bytes) -> list[ManifestRow]:
    """Row of a file whose worker process crashed or timed out."""
    error = lost.error()
    return [unread_row(path, site_key).skipped(error.reason, f"{path}: {error.message}")]
