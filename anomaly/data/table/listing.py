"""Build the table of scans of a folder: every file is read once and described by its rows.

A zip file counts as a folder of its members (`anomaly.data.table.unzipping`). Files that a DICOMDIR
lists but the folder lacks get a row too (`anomaly.data.table.media`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from unicodedata import normalize

from anomaly.data.readers.isolation import Lost, Workers
from anomaly.data.table.folders import list_files
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.data.table.media import lacking_rows, unread_row
from anomaly.data.table.pseudonyms import scan_key
from anomaly.data.table.unzipping import lost_rows, members_of_zips
from anomaly.errors import ManifestError, Reason

__all__ = ["PathNames", "build_manifest", "matches"]


@dataclass(frozen=True)
class PathNames:
    """Labels and sites by path: glob patterns (``*`` also matches ``/``) on relative paths.

    Attributes
    ----------
    labels : mapping of str to sequence of str
        Label -> patterns; the first match in order wins, and no match gives the label "".
    sites : mapping of str to sequence of str
        Site -> patterns, by the same rule.
    exclude : sequence of str
        Patterns of files that are not scans, such as masks; they get no row.
    """

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sites: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exclude: Sequence[str] = ()


def build_manifest(
    inspection: Inspection,
    names: PathNames,
    *,
    processes: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Build the manifest of a folder, reading every file once.

    Hidden files and folders (a leading dot) and folders with results of this toolkit are left out;
    each linked folder is listed once (`anomaly.data.table.folders`). Every other file gets at least
    one row. Files that cannot be used, and folders that are left out, get a row with status
    ``"skipped"`` and a reason. Splits are empty until `assign_splits` assigns them.

    Parameters
    ----------
    inspection : Inspection
        Its ``root`` is the folder.
    names : PathNames
    processes : Workers, optional
        Worker processes for decoding: a file that crashes its decoder, or exceeds the time limit,
        fails only its own row (``"decoder crashed"``, ``"decoder timed out"``) and not the run.
        None decodes in this process.
    progress : callable, optional
        ``progress(done, total)`` after each file.

    Returns
    -------
    Manifest

    Raises
    ------
    ManifestError
        The folder does not exist or contains no file, one of its folders cannot be listed, or two
        different scans share a key.
    """
    root, site_key = inspection.root, inspection.site_key
    processes = Workers(0) if processes is None else processes
    rows_of: dict[str, list[ManifestRow]] = {}
    listing = list_files(root)
    for left in listing.left_out:
        row = unread_row(left.path, site_key)
        rows_of[left.path] = [row.skipped(left.reason, left.detail)]
    files = _named(listing.files, site_key, rows_of)
    paths = members_of_zips(root, files, processes, site_key, rows_of)
    paths = [path for path in paths if not matches(path, names.exclude)]
    for done, (path, rows) in enumerate(processes.map(inspection.rows, paths), 1):
        rows_of[path] = lost_rows(path, rows, site_key) if isinstance(rows, Lost) else rows
        if progress is not None:
            progress(done, len(paths))
    labelled = (
        replace(row, label=_name(row.path, names.labels), site=_name(row.path, names.sites))
        for _, listed in sorted(lacking_rows(rows_of))
        for row in listed
    )
    unique = tuple(_skip_duplicates(labelled, site_key))
    _prove_keys(unique)
    return Manifest(root, unique)


def _named(
    paths: Iterable[str], site_key: bytes, rows_of: dict[str, list[ManifestRow]]
) -> list[str]:
    """Keep the names that are UTF-8; any other, as on old discs, gets a row in `rows_of`."""
    kept = []
    for path in paths:
        shown = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        if shown == path:
            kept.append(path)
        else:
            row = replace(unread_row(path, site_key), path=shown)
            detail = f"the name of {shown} is not UTF-8: rename the file to have it read."
            rows_of[shown] = [row.skipped(Reason.FILE_NAME, detail)]
    return kept


def _name(path: str, names: Mapping[str, Sequence[str]]) -> str:
    return next((name for name, patterns in names.items() if matches(path, patterns)), "")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path relative to the root matches any of the glob patterns."""
    # Some systems store accents decomposed from their letters; editors do not.
    name = normalize("NFC", path)
    return any(fnmatchcase(name, normalize("NFC", pattern)) for pattern in patterns)


def _skip_duplicates(rows: Iterable[ManifestRow], site_key: bytes) -> Iterator[ManifestRow]:
    """Skip repeated scans after the first; `instance` is the SOP Instance UID or file hash."""
    first: dict[tuple[str, int], ManifestRow] = {}
    for row in rows:
        if row.status != "ok":
            yield row
            continue
        known = first.setdefault((row.instance, row.frame), row)
        if known is row:
            yield row
            continue
        labels = (
            "" if known.label == row.label else f", but {known.label!r} there, {row.label!r} here"
        )
        same = "content" if known.sha256 == row.sha256 else "SOPInstanceUID with other content"
        # A key from its path: a key from its content would equal that of the scan it repeats.
        yield replace(row, key=scan_key(site_key, f"path:{row.path}", row.frame)).skipped(
            Reason.DUPLICATE, f"{row.path} repeats {known.path}: same {same}{labels}."
        )


def _prove_keys(rows: Iterable[ManifestRow]) -> None:
    owner: dict[str, ManifestRow] = {}
    for row in rows:
        if row.status == "ok" and owner.setdefault(row.key, row) is not row:
            other = owner[row.key]
            raise ManifestError(
                f"{other.path} frame {other.frame} and {row.path} frame {row.frame} are different "
                f"scans with the same key {row.key}; use another site key."
            )
