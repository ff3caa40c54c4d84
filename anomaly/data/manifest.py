"""A folder becomes a table: one row a scan, with its hash, its label and its split.

The manifest is the one place where pseudonyms meet identities, so it is written for its owner's
eyes only (mode 0600). Everything downstream names a scan by its key::

    key = first 12 hex digits of HMAC-SHA256(site key, SOPInstanceUID + "/" + frame)

Splits are dealt by patient, once, and proved disjoint each time a manifest is read: a patient, or
a file, that is in two splits makes every figure computed from them worthless.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.intensity import IntensityPolicy
from anomaly.data.processes import map_in_processes
from anomaly.data.readers import kind_of, open_frames
from anomaly.errors import ConfigError, ManifestError, ScanError, UnreadableScan
from anomaly.types import Scan

__all__ = [
    "SPLITS",
    "Manifest",
    "ManifestRow",
    "assign_splits",
    "build_manifest",
    "load_site_key",
    "prove_disjoint",
    "pseudonym",
]

SPLITS = ("train", "validation", "calibration", "test")

_KEY_DIGITS = 12
_SITE_KEY_BYTES = 32


@dataclass(frozen=True)
class ManifestRow:
    """One scan, or one file or frame that cannot be used and why.

    Attributes
    ----------
    key : str
        Pseudonym, 12 hex digits; unique among rows with status ``"ok"``.
    path : str
        Relative to the root of the manifest, with forward slashes.
    frame : int
        Frame, page or slice in the file, from 0.
    sha256 : str
        Hash of the whole file; empty where it could not be read.
    kind : str
        ``"dicom"``, ``"png"``, ``"jpeg"``, ``"tiff"``, ``"nifti"`` or empty.
    patient, study, series, instance : str
        DICOM identity or stand-ins; empty where unknown. Identifying.
    modality, view : str
    rows, columns, levels : int
        Size in pixels and number of grey values; 0 where the scan cannot be used.
    spacing_row, spacing_column : float or None
        Height and width of a pixel in mm.
    spacing_source : str
    burned_in, synthetic : bool
    label : str
        From the folder layout; empty where no pattern matches.
    split : str
        One of `SPLITS`, or empty before they are dealt and for skipped rows.
    status : {"ok", "skipped"}
    reason : str
        Short stable word for a skipped row; may be shared.
    detail : str
        Sentence for a person; may quote paths and file contents.
    """

    key: str
    path: str
    frame: int
    sha256: str = ""
    kind: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    modality: str = ""
    view: str = ""
    rows: int = 0
    columns: int = 0
    levels: int = 0
    spacing_row: float | None = None
    spacing_column: float | None = None
    spacing_source: str = "none"
    burned_in: bool = False
    synthetic: bool = False
    label: str = ""
    split: str = ""
    status: Literal["ok", "skipped"] = "ok"
    reason: str = ""
    detail: str = ""

    def skipped(self, reason: str, detail: str) -> ManifestRow:
        """Return this row as one that is not used, in no split."""
        return replace(self, split="", status="skipped", reason=reason, detail=detail)


_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float | None": pa.float64(),
    "Literal['ok', 'skipped']": pa.string(),
}
# the annotations are strings, by `from __future__ import annotations`
_SCHEMA = pa.schema(
    [(field.name, _ARROW_TYPES[str(field.type).replace('"', "'")]) for field in fields(ManifestRow)]
)


@dataclass(frozen=True)
class Manifest:
    """The table of scans under one folder.

    Attributes
    ----------
    root : Path
        Folder that the paths of the rows are relative to.
    rows : tuple of ManifestRow
        Sorted by path and frame.
    """

    root: Path
    rows: tuple[ManifestRow, ...]

    @classmethod
    def read(cls, path: Path, root: Path | None = None) -> Manifest:
        """Read a manifest from parquet and prove its splits disjoint.

        Parameters
        ----------
        path : Path
        root : Path, optional
            Where the scans are now, if the folder has moved since it was written.

        Raises
        ------
        ManifestError
            The file is not a manifest, or a patient or file is in two splits.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(
                f"{path} cannot be read as parquet ({error}); make it again by `anomaly prepare`."
            ) from error
        metadata = table.schema.metadata or {}
        if b"root" not in metadata or not table.schema.equals(_SCHEMA):
            raise ManifestError(
                f"{path} is not a manifest of this version: it has columns "
                f"{table.schema.names}; make it again by `anomaly prepare`."
            )
        rows = tuple(ManifestRow(**record) for record in table.to_pylist())
        manifest = cls(root or Path(os.fsdecode(metadata[b"root"])), rows)
        prove_disjoint(manifest)
        return manifest

    def write(self, path: Path) -> None:
        """Write to parquet with mode 0600; the file appears whole or not at all.

        Parameters
        ----------
        path : Path
            Its folder must exist. An existing file is replaced.
        """
        table = pa.Table.from_pylist([asdict(row) for row in self.rows], schema=_SCHEMA)
        table = table.replace_schema_metadata({b"root": os.fsencode(self.root.absolute())})
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                pq.write_table(table, stream, compression="zstd")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def select(
        self, *, split: str | None = None, label: str | None = None, status: str | None = "ok"
    ) -> tuple[ManifestRow, ...]:
        """Rows that match every given value, in order; None matches any value."""
        return tuple(
            row
            for row in self.rows
            if split in (None, row.split)
            and label in (None, row.label)
            and status in (None, row.status)
        )

    @property
    def hash(self) -> str:
        """SHA-256 in hex over content, frame, split and label of the usable scans.

        It does not depend on the folder, the file names or their order, so that two sites can show
        that they used the same data in the same splits.
        """
        digest = hashlib.sha256()
        lines = [f"{r.sha256} {r.frame} {r.split} {r.label}\n" for r in self.select()]
        for line in sorted(lines):
            digest.update(line.encode())
        return digest.hexdigest()

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Count rows by ``(split, label, reason)``, where reason is ``"ok"`` for usable ones."""
        return dict(
            sorted(Counter((r.split, r.label, r.reason or r.status) for r in self.rows).items())
        )


# --- from a folder ----------------------------------------------------------------------------


def build_manifest(
    root: Path,
    *,
    labels: Mapping[str, Sequence[str]],
    exclude: Sequence[str] = (),
    patient_pattern: str | None,
    policy: IntensityPolicy,
    site_key: bytes,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    r"""Read every file under a folder once, and write down what it is.

    Hidden files and folders (a leading dot) are left out, and links to folders are not followed.
    Every other file gives at least one row; one that cannot be used gives a row with status
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
    exclude : sequence of str
        Glob patterns of files that are no scans, such as masks; they give no row.
    patient_pattern : str or None
        Regular expression searched in the file name; its first group, or the whole match where it
        has none, is the patient. A file that it does not match is skipped with ``"no patient"``.
    policy : IntensityPolicy
    site_key : bytes
        Secret behind the pseudonyms; see `load_site_key`.
    workers : int
        Processes that decode. With more than 1, a file that kills its decoder costs its own row
        (``"decoder crashed"``) and not the run.
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
        `patient_pattern` is no regular expression, or `workers` is below 1.
    """
    pattern = _compile(patient_pattern)
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more.")
    paths = [path for path in _list_files(root) if not _matches(path, exclude)]
    inspect = partial(_inspect, root, pattern, policy, site_key)
    found: dict[str, list[ManifestRow]] = {}
    for path, result in map_in_processes(inspect, paths, workers):
        found[path] = [_crashed(path, site_key)] if result is None else result
        if progress is not None:
            progress(len(found), len(paths))
    labelled = (
        replace(row, label=_label(row.path, labels)) for path in paths for row in found[path]
    )
    rows = tuple(_skip_duplicates(labelled))
    _prove_keys(rows)
    return Manifest(root, rows)


def load_site_key(path: Path) -> bytes:
    """Read the secret behind the pseudonyms, or make one.

    Parameters
    ----------
    path : Path
        Text file of 64 hex digits, mode 0600; created with its folder where it does not exist.

    Returns
    -------
    bytes of length 32

    Raises
    ------
    ConfigError
        The file does not hold 64 hex digits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * _SITE_KEY_BYTES}}}", text):
            raise ConfigError(
                f"{path} has {len(text)} characters; expected a site key of "
                f"{2 * _SITE_KEY_BYTES} hex digits. Delete it to make a new one, which "
                "changes every pseudonym."
            ) from None
        return bytes.fromhex(text)
    key = secrets.token_bytes(_SITE_KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(key.hex() + "\n")
    return key


def _compile(patient_pattern: str | None) -> re.Pattern[str] | None:
    if patient_pattern is None:
        return None
    try:
        return re.compile(patient_pattern)
    except re.error as error:
        raise ConfigError(
            f"patient_pattern {patient_pattern!r} is not a regular expression: {error}."
        ) from error


def _list_files(root: Path) -> list[str]:
    """Paths of all files relative to `root`, hidden ones left out, sorted."""
    if not root.is_dir():
        raise ManifestError(f"{root} is not a folder; expected the folder that holds the scans.")

    def fail(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be listed: {error}.") from error

    paths = []
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        paths += [(here / name).as_posix() for name in names if not name.startswith(".")]
    if not paths:
        raise ManifestError(f"{root} holds no files; expected scans in it or in its folders.")
    return sorted(paths)


def _label(path: str, labels: Mapping[str, Sequence[str]]) -> str:
    for label, patterns in labels.items():
        if _matches(path, patterns):
            return label
    return ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def pseudonym(site_key: bytes, name: str) -> str:
    """Name that only who has the site key can link to `name`: HMAC-SHA256, shortened."""
    return hmac.new(site_key, name.encode(), hashlib.sha256).hexdigest()[:_KEY_DIGITS]


def _key(site_key: bytes, instance: str, frame: int) -> str:
    return pseudonym(site_key, f"{instance}/{frame}")


# --- one file ---------------------------------------------------------------------------------


def _inspect(
    root: Path,
    pattern: re.Pattern[str] | None,
    policy: IntensityPolicy,
    site_key: bytes,
    relative: str,
) -> list[ManifestRow]:
    """Rows of one file; nothing that the file holds can make this raise."""
    path = root / relative
    # without content to stand for the file, its place has to
    row = ManifestRow(key=_key(site_key, f"path:{relative}", 0), path=relative, frame=0)
    try:
        kind = kind_of(path)
        sha256 = _file_hash(path)
        row = replace(row, kind=kind, sha256=sha256, key=_key(site_key, sha256, 0))
        frames = open_frames(path, policy)
    except ScanError as error:
        return [row.skipped(error.reason, error.message)]
    rows = []
    for index, frame in enumerate(frames):
        here = replace(row, frame=index, key=_key(site_key, sha256, index))
        if isinstance(frame, ScanError):
            rows.append(here.skipped(frame.reason, frame.message))
        else:
            rows.append(_describe(here, frame, pattern, site_key))
    return rows


def _describe(
    row: ManifestRow, scan: Scan, pattern: re.Pattern[str] | None, site_key: bytes
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
        view=scan.view,
        rows=scan.pixels.shape[0],
        columns=scan.pixels.shape[1],
        levels=scan.levels,
        spacing_row=height,
        spacing_column=width,
        spacing_source=scan.spacing_source,
        burned_in=scan.burned_in,
        synthetic=scan.synthetic,
    )
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


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UnreadableScan("unreadable", f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()


def _crashed(path: str, site_key: bytes) -> ManifestRow:
    row = ManifestRow(key=_key(site_key, f"path:{path}", 0), path=path, frame=0)
    return row.skipped(
        "decoder crashed",
        f"{path} ended the process that decoded it, twice; the file is damaged or the machine is "
        "out of memory.",
    )


def _skip_duplicates(rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
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
        yield row.skipped("duplicate", f"{row.path} repeats {known.path}: same {same}{labels}.")


def _prove_keys(rows: Iterable[ManifestRow]) -> None:
    owner: dict[str, ManifestRow] = {}
    for row in rows:
        if row.status == "ok" and owner.setdefault(row.key, row) is not row:
            other = owner[row.key]
            raise ManifestError(
                f"{other.path} frame {other.frame} and {row.path} frame {row.frame} are different "
                f"scans with the same key {row.key}; use another site key."
            )


# --- splits -----------------------------------------------------------------------------------


def assign_splits(
    manifest: Manifest,
    fractions: Mapping[str, float],
    *,
    normal_label: str,
    seed: int,
    allow_synthetic: bool = False,
) -> Manifest:
    """Deal the patients with only normal scans to the splits; all other scans go to test.

    A patient with any scan of another label goes to test whole, also where that scan itself cannot
    be used. The patients are sorted, shuffled by ``numpy.random.default_rng(seed)`` and cut at the
    cumulated fractions, so that each split is within one patient of its fraction.

    Parameters
    ----------
    manifest : Manifest
        Splits that it already has are dealt anew.
    fractions : mapping of str to float
        Share of *patients* for each of `SPLITS`; one left out gets none. They sum to 1.
    normal_label : str
    seed : int
    allow_synthetic : bool
        Let scans marked SyntheticData=YES stand for normals (phantoms). Otherwise they become
        skipped rows with reason ``"synthetic"``: a model of normal anatomy must not learn from, or
        be calibrated on, images that a model made.

    Returns
    -------
    Manifest

    Raises
    ------
    ConfigError
        A split is unknown, or a fraction is negative, or they do not sum to 1 within 1e-9.
    ManifestError
        No usable scan carries `normal_label`, or the splits are not disjoint.
    """
    _check_fractions(fractions)
    rows = [replace(row, split="") for row in manifest.rows]
    if not allow_synthetic:
        rows = [_skip_synthetic(row, normal_label) for row in rows]
    normal = {row.patient for row in rows if row.status == "ok" and row.label == normal_label}
    if not normal:
        labels = sorted({row.label for row in rows if row.status == "ok"})
        raise ManifestError(
            f"No usable scan has label {normal_label!r}; the labels of usable scans are {labels}."
        )
    # An unlabelled row that cannot be used says nothing; a report or a text file, for example.
    other = {
        row.patient
        for row in rows
        if row.label != normal_label and (row.status == "ok" or row.label)
    }
    dealt = _deal(sorted(normal - other), fractions, seed)
    result = replace(
        manifest,
        rows=tuple(
            replace(row, split=dealt.get(row.patient, "test")) if row.status == "ok" else row
            for row in rows
        ),
    )
    prove_disjoint(result)
    return result


def prove_disjoint(manifest: Manifest) -> None:
    """Check that no patient and no file is in two splits.

    Parameters
    ----------
    manifest : Manifest

    Raises
    ------
    ManifestError
        Says how many patients or files are in which splits, and names scans by key, not by patient.
    """
    for what in ("patient", "sha256"):
        splits: defaultdict[str, set[str]] = defaultdict(set)
        keys: dict[str, str] = {}
        for row in manifest.rows:
            if row.split:
                splits[getattr(row, what)].add(row.split)
                keys.setdefault(getattr(row, what), row.key)
        shared = {name for name, where in splits.items() if len(where) > 1}
        if shared:
            where = Counter(" + ".join(sorted(splits[name])) for name in shared)
            pairs = ", ".join(f"{count} in {names}" for names, count in sorted(where.items()))
            example = min(keys[name] for name in shared)
            raise ManifestError(
                f"{len(shared)} {'patient' if what == 'patient' else 'file'}(s) are in more than "
                f"one split ({pairs}); one has scan {example}. Deal the splits anew by patient."
            )


def _check_fractions(fractions: Mapping[str, float]) -> None:
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise ConfigError(f"Unknown splits {unknown}; expected some of {list(SPLITS)}.")
    total = math.fsum(fractions.values())
    if any(not value >= 0 for value in fractions.values()) or not abs(total - 1) <= 1e-9:
        raise ConfigError(
            f"The split fractions {dict(fractions)} sum to {total:g}; expected numbers of 0 or "
            "more that sum to 1."
        )


def _skip_synthetic(row: ManifestRow, normal_label: str) -> ManifestRow:
    if row.status != "ok" or not row.synthetic or row.label != normal_label:
        return row
    return row.skipped(
        "synthetic",
        f"{row.path} is marked SyntheticData=YES, so it cannot stand for normal anatomy; "
        "allow synthetic scans for phantoms only.",
    )


def _deal(patients: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of each patient; cuts at the rounded cumulated fractions of the shuffled list."""
    order = np.random.default_rng(seed).permutation(len(patients))
    shares = np.array([fractions.get(split, 0.0) for split in SPLITS])
    cuts = np.rint(np.cumsum(shares) * len(patients)).astype(int)
    names = np.searchsorted(cuts, np.arange(len(patients)), side="right").clip(max=len(SPLITS) - 1)
    return {patients[place]: SPLITS[name] for place, name in zip(order, names, strict=True)}
