"""Files that are lost: what a DICOMDIR lists and the folder lacks gets a row too.

A scan that was lost on its way is not a scan that was never taken.
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
    """Row of a file of which nothing is known: without content, its place has to stand for it."""
    return ManifestRow(key=scan_key(site_key, f"path:{relative}", 0), path=relative, frame=0)


def listed_rows(path: Path, relative: str, site_key: bytes) -> list[ManifestRow]:
    """Rows that say "missing" of all files that a DICOMDIR lists.

    `lacking_rows` keeps those that are: what is there may lie in other processes' hands, or in a
    zip archive.
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
    """Rows by path, without those that say "missing" of a file that is there."""
    # Discs are copied by systems that change the case of names, or the names: the UID stays.
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
    """Say of a listed file that another instance is where it should be, as anonymising leaves."""
    if row.reason != Reason.MISSING or row.path.lower() not in here:
        return row
    return row.skipped(
        Reason.OTHER_INSTANCE,
        f"{row.path} is there, and is another instance than the one that the disc lists under this "
        "name: it has a row of its own. Was the disc anonymised?",
    )


def _is_there(listed: ManifestRow, here: Mapping[str, set[str]], read: set[str]) -> bool:
    """Whether a listed file was found: by its instance, or in its place where neither says one."""
    if listed.instance in read:
        return True
    known = here.get(listed.path.lower())
    return known is not None and (not listed.instance or not known - {""})
