"""Rows for files that a DICOMDIR lists but the folder lacks.

A scan that was lost in transfer must be reported, unlike one that was never taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anomaly.data.readers.dicom_media import ListedFile, listed_files
from anomaly.data.table.manifest import ManifestRow
from anomaly.data.table.pseudonyms import scan_key
from anomaly.errors import Reason, ScanError

__all__ = ["lacking_rows", "listed_rows", "unread_row"]


def unread_row(relative: str, site_key: bytes) -> ManifestRow:
    """Row of a file whose content is unknown; its key is derived from its path instead."""
    return ManifestRow(key=scan_key(site_key, f"path:{relative}", 0), path=relative, frame=0)


def listed_rows(path: Path, relative: str, site_key: bytes) -> list[ManifestRow]:
    """Rows with reason "missing" for all files that a DICOMDIR lists.

    `lacking_rows` later removes the rows of files that were found: at this point a file may be in
    another process, or in a zip file.
    """
    try:
        names = listed_files(path)
    except ScanError as error:
        return [unread_row(relative, site_key).skipped(error.reason, error.message)]
    folder = PurePosixPath(relative).parent

    def missing(listed: ListedFile) -> ManifestRow:
        row = unread_row((folder / listed.name).as_posix(), site_key)
        detail = f"{relative} lists {listed.name}, which is not there; copy the disc again."
        return replace(row, instance=listed.instance).skipped(Reason.MISSING, detail)

    return [missing(listed) for listed in dict.fromkeys(names)]


def lacking_rows(
    rows_of: Mapping[str, list[ManifestRow]],
) -> Iterator[tuple[str, list[ManifestRow]]]:
    """Rows by path, without "missing" rows of files that were found."""
    # Copying a disc can change the case of names, or the names; the UID does not change.
    here = {
        path.lower(): {row.instance for row in rows if row.instance != row.sha256}
        for path, rows in rows_of.items()
    }
    read = {
        row.instance for rows in rows_of.values() for row in rows if row.reason != Reason.MISSING
    }
    read.discard("")
    for path, rows in rows_of.items():
        lacking = [
            row for row in rows if row.reason != Reason.MISSING or not _is_there(row, here, read)
        ]
        yield path, [_in_its_place(row, here) for row in lacking]


def _in_its_place(row: ManifestRow, here: Mapping[str, set[str]]) -> ManifestRow:
    """Change the reason if another instance has the listed path, as after anonymisation."""
    if row.reason != Reason.MISSING or row.path.lower() not in here:
        return row
    return row.skipped(
        Reason.OTHER_INSTANCE,
        f"{row.path} is there, and is another instance than the one that the disc lists under this "
        "name: it has a row of its own. Was the disc anonymised?",
    )


def _is_there(listed: ManifestRow, here: Mapping[str, set[str]], read: set[str]) -> bool:
    """Whether a listed file was found: by instance UID, or by path if either UID is empty."""
    if listed.instance in read:
        return True
    known = here.get(listed.path.lower())
    return known is not None and (not listed.instance or not known - {""})
