"""A folder becomes a table of scans: every file is read once, and one row says what it is.

A zip archive counts as a folder of its members. What a DICOMDIR lists and the folder lacks gets a
row too: a scan that was lost on its way is not a scan that was never taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from anomaly.data.images.network_images import view_scan
from anomaly.data.images.transforms import Preprocessing
from anomaly.data.readers.dicom import instance_uid
from anomaly.data.readers.dicom_media import ListedFile, listed_files
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import SECONDS, Lost, Workers
from anomaly.data.readers.registry import content_hash, kind_of, open_frames
from anomaly.data.readers.zips import Listing, is_zip, list_members, on_disk
from anomaly.data.table.folders import list_files
from anomaly.data.table.gate import OPEN_GATE, Gate
from anomaly.data.table.manifest import Manifest, ManifestRow, pixel_hash
from anomaly.data.table.pseudonyms import pseudonym
from anomaly.errors import ConfigError, ManifestError, ScanError
from anomaly.types import Scan

__all__ = ["build_manifest", "file_rows", "matches"]


def build_manifest(
    root: Path,
    *,
    labels: Mapping[str, Sequence[str]],
    sites: Mapping[str, Sequence[str]] | None = None,
    exclude: Sequence[str] = (),
    patient_pattern: str | None,
    policy: IntensityPolicy,
    site_key: bytes,
    gate: Gate = OPEN_GATE,
    preprocessing: Preprocessing | None = None,
    workers: int = 0,
    seconds: float = SECONDS,
    processes: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    r"""Read every file under a folder once, and write down what it is.

    Hidden files and folders (a leading dot) are left out, and so are folders of this toolkit's own
    results; links to folders are followed once (`anomaly.data.table.folders`). Every other file
    gives at least one row; what cannot be used, and a folder left out, gives a row with status
    ``"skipped"`` and a reason. Splits are empty until `assign_splits` deals them.

    The patient is the DICOM PatientID; where that is empty, what `patient_pattern` finds in the
    file name; without a pattern, the DICOM study; and without that, *each file is a patient of its
    own*, so give a pattern wherever a patient may have two files.

    Parameters
    ----------
    root : Path
    labels : mapping of str to sequence of str
        Label -> glob patterns on the path relative to `root` (``*`` also matches ``/``); the first
        match in order wins, and no match gives the label "".
    sites : mapping of str to sequence of str, optional
        Site -> glob patterns, by the same rule.
    exclude : sequence of str
        Glob patterns of files that are no scans, such as masks; they give no row.
    patient_pattern : str or None
        Regular expression searched in the file name; its first group, or the whole match where it
        has none, is the patient. A file that it does not match is skipped with ``"no patient"``.
    policy : IntensityPolicy
    site_key : bytes
        Secret behind the pseudonyms; see `load_site_key`.
    gate : Gate
        Scans to be left out by what their tags say.
    preprocessing : Preprocessing, optional
        Look as well whether a network could see each scan; one that it could not is skipped, and
        training does not find it later.
    workers : int
        Processes that decode. With 1 or more, a file that kills its decoder, or that takes longer
        than `seconds`, costs its own row (``"decoder crashed"``, ``"decoder timed out"``) and not
        the run.
    seconds : float
    processes : Workers, optional
        Processes that are there already, instead of `workers` new ones.
    progress : callable, optional
        ``progress(done, total)`` after each file.

    Returns
    -------
    Manifest

    Raises
    ------
    ManifestError
        The folder does not exist or holds no file, a folder in it cannot be listed, or two
        different scans share a key.
    ConfigError
        `patient_pattern` is no regular expression, or `workers` is below 0.
    """
    pattern = _compile(patient_pattern)
    if workers < 0:
        raise ConfigError(f"workers is {workers}; expected 0 or more.")
    rows_of: dict[str, list[ManifestRow]] = {}
    with nullcontext(processes) if processes else Workers(workers, seconds) as pool:
        listing = list_files(root)
        for left in listing.left_out:
            row = _unread(left.path, site_key)
            rows_of[left.path] = [row.skipped(left.reason, left.detail)]
        files = _named(listing.files, site_key, rows_of)
        paths = _unzipped(root, files, pool, site_key, rows_of)
        paths = [path for path in paths if not matches(path, exclude)]
        inspect = partial(file_rows, root, pattern, policy, (gate, preprocessing), site_key)
        for done, (path, result) in enumerate(pool.map(inspect, paths), 1):
            rows_of[path] = _lost(path, result, site_key) if isinstance(result, Lost) else result
            if progress is not None:
                progress(done, len(paths))
    labelled = (
        replace(row, label=_name(row.path, labels), site=_name(row.path, sites or {}))
        for _, listed in sorted(_lacking(rows_of))
        for row in listed
    )
    rows = tuple(_skip_duplicates(labelled, site_key))
    _prove_keys(rows)
    return Manifest(root, rows)


def _compile(patient_pattern: str | None) -> re.Pattern[str] | None:
    if patient_pattern is None:
        return None
    try:
        return re.compile(patient_pattern)
    except re.error as error:
        raise ConfigError(
            f"patient_pattern {patient_pattern!r} is not a regular expression: {error}."
        ) from error


def _named(
    paths: Iterable[str], site_key: bytes, rows_of: dict[str, list[ManifestRow]]
) -> list[str]:
    """Keep the names that are text; one that is not, as on old discs, gets its row in `rows_of`."""
    kept = []
    for path in paths:
        shown = os.fsencode(path).decode("utf-8", errors="backslashreplace")
        if shown == path:
            kept.append(path)
        else:
            row = replace(_unread(path, site_key), path=shown)
            detail = f"the name of {shown} is not UTF-8: rename the file to have it read."
            rows_of[shown] = [row.skipped("file name", detail)]
    return kept


def _name(path: str, names: Mapping[str, Sequence[str]]) -> str:
    return next((name for name, patterns in names.items() if matches(path, patterns)), "")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path relative to the root fits one of some glob patterns."""
    # Some systems store the accents of a name apart from its letters, editors do not.
    name = normalize("NFC", path)
    return any(fnmatchcase(name, normalize("NFC", pattern)) for pattern in patterns)


_Demands = tuple[Gate, Preprocessing | None]
"""What a scan must be, beyond being readable."""


def _key(site_key: bytes, instance: str, frame: int) -> str:
    return pseudonym(site_key, f"{instance}/{frame}")


VIEWS = frozenset(
    ["AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "CC", "ML", "MLO"]
)
"""View positions as DICOM defines them (PS3.3 C.8.11.5, C.8.1.2), and the usual word for a lateral.

A view goes into shared tables; whatever else somebody has typed there does not."""


def _view(position: str) -> str:
    return position if position in VIEWS or not position else "other"


# --- one file ---------------------------------------------------------------------------------


def file_rows(
    root: Path,
    pattern: re.Pattern[str] | None,
    policy: IntensityPolicy,
    demands: _Demands,
    site_key: bytes,
    relative: str,
) -> list[ManifestRow]:
    """Rows of one file; nothing that the file holds can make this raise."""
    row = _unread(relative, site_key)
    try:
        with on_disk(root / relative) as path:
            rows = _rows(path, row, pattern, policy, demands, site_key)
            if any(row.reason == "media directory" for row in rows):
                rows += _listed(path, relative, site_key)
    except ScanError as error:
        return [row.skipped(error.reason, error.message)]
    # Where a member of an archive was unpacked to for the moment is nobody's business.
    return [replace(r, detail=r.detail.replace(str(path), str(root / relative))) for r in rows]


def _rows(
    path: Path,
    row: ManifestRow,
    pattern: re.Pattern[str] | None,
    policy: IntensityPolicy,
    demands: _Demands,
    site_key: bytes,
) -> list[ManifestRow]:
    rows = []
    try:
        kind = kind_of(path)
        sha256 = content_hash(path)
        row = replace(row, kind=kind, sha256=sha256, key=_key(site_key, sha256, 0))
        frames = open_frames(path, policy)
        gate, _ = demands
        gate.check_frames(len(frames))
        for index, frame in enumerate(frames):
            here = replace(row, frame=index, key=_key(site_key, sha256, index))
            if isinstance(frame, ScanError):
                instance = instance_uid(path) if kind == "dicom" else ""
                rows.append(replace(here, instance=instance).skipped(frame.reason, frame.message))
            else:
                rows.append(_describe(here, frame, pattern, demands, site_key))
    except ScanError as error:
        instance = instance_uid(path) if row.kind == "dicom" else ""
        return [replace(row, instance=instance).skipped(error.reason, error.message)]
    return rows


def _unread(relative: str, site_key: bytes) -> ManifestRow:
    # without content to stand for the file, its place has to
    return ManifestRow(key=_key(site_key, f"path:{relative}", 0), path=relative, frame=0)


def _unzipped(
    root: Path,
    paths: Sequence[str],
    processes: Workers,
    site_key: bytes,
    rows_of: dict[str, list[ManifestRow]],
) -> list[str]:
    """Replace zip archives by their members; what cannot be read of them gets its row in `rows_of`.

    An archive that is in the way of a folder of the same name does not occur: names are unique.
    """
    zips = [path for path in paths if is_zip(Path(path))]
    plain = [path for path in paths if not is_zip(Path(path))]
    for path, listing in processes.map(partial(_list_zip, root), zips):
        if isinstance(listing, Lost):
            rows_of[path] = _lost(path, listing, site_key)
        elif isinstance(listing, ScanError):
            rows_of[path] = [_unread(path, site_key).skipped(listing.reason, listing.message)]
        else:
            plain += [f"{path}/{member}" for member in listing.members]
            rows_of[path] = [
                _unread(f"{path}/{name}", site_key).skipped(reason, f"{name!r} in {path}: {reason}")
                for name, reason in listing.refused
            ]
    return sorted(plain)


def _list_zip(root: Path, relative: str) -> Listing | ScanError:
    try:
        return list_members(root / relative)
    except ScanError as error:
        return error


def _listed(path: Path, relative: str, site_key: bytes) -> list[ManifestRow]:
    """Rows that say "missing" of all files that a DICOMDIR lists; `_lacking` keeps those that are.

    What is there may lie in other processes' hands, or in a zip archive.
    """
    try:
        names = listed_files(path)
    except ScanError as error:
        return [_unread(relative, site_key).skipped(error.reason, error.message)]
    folder = PurePosixPath(relative).parent

    def missing(listed: ListedFile) -> ManifestRow:
        row = _unread((folder / listed.name).as_posix(), site_key)
        detail = f"{relative} lists {listed.name}, which is not there; copy the disc again."
        return replace(row, instance=listed.instance).skipped("missing", detail)

    return [missing(listed) for listed in dict.fromkeys(names)]


def _lacking(
    rows_of: Mapping[str, list[ManifestRow]],
) -> Iterator[tuple[str, list[ManifestRow]]]:
    # Discs are copied by systems that change the case of names, or the names: the UID stays.
    here = {
        path.lower(): {row.instance for row in rows if row.instance != row.sha256}
        for path, rows in rows_of.items()
    }
    read = {row.instance for rows in rows_of.values() for row in rows if row.reason != "missing"}
    read.discard("")
    for path, rows in rows_of.items():
        lacking = [row for row in rows if row.reason != "missing" or not _is_there(row, here, read)]
        yield path, [_in_its_place(row, here) for row in lacking]


def _in_its_place(row: ManifestRow, here: Mapping[str, set[str]]) -> ManifestRow:
    """Say of a listed file that another instance is where it should be, as anonymising leaves."""
    if row.reason != "missing" or row.path.lower() not in here:
        return row
    return row.skipped(
        "other instance",
        f"{row.path} is there, and is another instance than the one that the disc lists under this "
        "name: it has a row of its own. Was the disc anonymised?",
    )


def _is_there(listed: ManifestRow, here: Mapping[str, set[str]], read: set[str]) -> bool:
    """Whether a listed file was found: by its instance, or in its place where neither says one."""
    if listed.instance in read:
        return True
    known = here.get(listed.path.lower())
    return known is not None and (not listed.instance or not known - {""})


def _describe(
    row: ManifestRow,
    scan: Scan,
    pattern: re.Pattern[str] | None,
    demands: _Demands,
    site_key: bytes,
) -> ManifestRow:
    identity = scan.identity
    instance = identity.instance or row.sha256
    height, width = scan.spacing or (None, None)
    row = replace(
        row,
        key=_key(site_key, instance, row.frame),
        patient=_patient(row, scan, pattern),
        study=identity.study,
        series=identity.series,
        instance=instance,
        modality=scan.modality,
        view=_view(scan.view),
        rows=scan.pixels.shape[0],
        columns=scan.pixels.shape[1],
        levels=scan.levels,
        spacing_row=height,
        spacing_column=width,
        spacing_source=scan.spacing_source,
        orientation=str(scan.orientation),
        burned_in=scan.burned_in,
        synthetic=scan.synthetic,
        pixels=pixel_hash(scan.pixels),
        detail="; ".join(scan.notes),
    )
    gate, preprocessing = demands
    try:
        gate.check(scan)
        if preprocessing is not None:
            view_scan(scan, preprocessing)
    except ScanError as error:
        return row.skipped(error.reason, error.message)
    if row.patient:
        return row
    return row.skipped(
        "no patient",
        f"{row.path} names no patient, and patient_pattern finds none in its file name; "
        "without one, the scan cannot be kept out of a second split.",
    )


def _patient(row: ManifestRow, scan: Scan, pattern: re.Pattern[str] | None) -> str:
    """Patient of a scan by the rule of `build_manifest`, or empty."""
    if scan.identity.patient:
        return scan.identity.patient
    if pattern is None:
        study = scan.identity.study
        return f"study:{study}" if study else f"file:{row.sha256}"
    match = pattern.search(Path(row.path).name)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def _lost(path: str, lost: Lost, site_key: bytes) -> list[ManifestRow]:
    error = lost.error()
    return [_unread(path, site_key).skipped(error.reason, f"{path}: {error.message}")]


def _skip_duplicates(rows: Iterable[ManifestRow], site_key: bytes) -> Iterator[ManifestRow]:
    """Keep the first of each scan; `instance` is the SOP Instance UID or the file's hash."""
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
        # Its own key: by content it would be the key of the scan that it repeats.
        yield replace(row, key=_key(site_key, f"path:{row.path}", row.frame)).skipped(
            "duplicate", f"{row.path} repeats {known.path}: same {same}{labels}."
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
