"""The table of scans: one row per scan, with its hash, label and split.

The manifest is the only file that links pseudonyms to identities, so only its owner can read it
(mode 0600). All later stages identify a scan by its key::

    key = pseudonym(site key, SOPInstanceUID + "/" + frame)

It is built from a folder (`anomaly.data.table.listing`), and its patients are assigned to splits
(`anomaly.data.table.splits`). Each time a manifest is read, its splits are checked to be disjoint:
a patient or a file in two splits would invalidate every figure computed from them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from anomaly.errors import ManifestError, Reason
from anomaly.files import whole

__all__ = ["NOT_LISTED", "Manifest", "ManifestRow", "pixel_hash", "prove_disjoint", "scan_marks"]


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One scan, or one file or frame that cannot be used, with the reason.

    Attributes
    ----------
    key : str
        Pseudonym; unique among rows with status ``"ok"``.
    path : str
        Relative to the root of the manifest, with forward slashes.
    frame : int
        Frame, page or slice in the file, from 0.
    sha256 : str
        Hash of the whole file; empty if it could not be read.
    kind : str
        ``"dicom"``, ``"png"``, ``"jpeg"``, ``"tiff"``, ``"nifti"`` or empty.
    patient, study, series, instance : str
        DICOM identity or substitutes; empty if unknown. Identifying.
    modality, view : str
    rows, columns, levels : int
        Size in pixels, as shown upright, and number of grey values; 0 if the scan cannot be used.
    spacing_row, spacing_column : float or None
        Height and width of a pixel in mm.
    spacing_source : str
    orientation : str
        How the stored pixels are turned to show them upright (`anomaly.types.Orientation`).
    burned_in, synthetic : bool
    pixels : str
        `pixel_hash` of the scan as shown; empty if it cannot be used.
    mask : str
        Hash of the file of its lesion mask, for evaluation; empty if it has none.
    label : str
        From the folder layout; empty if no pattern matches.
    site : str
        Site from the patterns of the configuration; empty if no pattern matches.
    split : str
        One of `anomaly.data.table.splits.SPLITS`; empty before splits are assigned and for skipped
        rows.
    status : {"ok", "skipped"}
    reason : str
        For a skipped row, a value of `anomaly.errors.Reason`; may be shared.
    detail : str
        Sentence for the user; may quote paths and file contents. For a usable scan, the contents of
        its file that could not be used, such as a window of zero width.
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
    orientation: str = ""
    burned_in: bool = False
    synthetic: bool = False
    pixels: str = ""
    mask: str = ""
    label: str = ""
    site: str = ""
    split: str = ""
    status: Literal["ok", "skipped"] = "ok"
    reason: str = ""
    detail: str = ""

    def skipped(self, reason: Reason, detail: str) -> ManifestRow:
        """Copy of this row with status ``"skipped"`` and no split."""
        return replace(self, split="", status="skipped", reason=reason.value, detail=detail)


_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float | None": pa.float64(),
    "Literal['ok', 'skipped']": pa.string(),
}
# With `from __future__ import annotations`, field types are strings.
_SCHEMA = pa.schema(
    [(field.name, _ARROW_TYPES[str(field.type).replace('"', "'")]) for field in fields(ManifestRow)]
)


NOT_LISTED = "not listed"
"""Value of `mask` for a scan listed by an earlier version, which did not record the hash."""

_LATER = {"pixels": "", "mask": NOT_LISTED}
"""Columns that manifests of earlier versions lack, with their default values."""


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
        """Read a manifest from parquet and check that its splits are disjoint.

        Parameters
        ----------
        path : Path
        root : Path, optional
            Current folder of the scans, if it has moved since the manifest was written.

        Raises
        ------
        ManifestError
            The file is not a manifest or is damaged, or a patient, file or picture is in two
            splits.
        """
        try:
            table = pq.read_table(path)
            records, names = table.to_pylist(), table.schema.names
        except (OSError, ValueError, pa.ArrowException) as error:
            cause = str(error).partition("\n")[0]
            raise ManifestError(
                f"{path} cannot be read as parquet ({cause}); make it again by `anomaly prepare`."
            ) from error
        metadata = table.schema.metadata or {}
        known = {field.name: field.type for field in _SCHEMA}
        lacking = known.keys() - set(names)
        is_one = all(known.get(field.name) == field.type for field in table.schema)
        if b"root" not in metadata or not is_one or not lacking <= _LATER.keys():
            raise ManifestError(
                f"{path} is not a manifest of this version: it has columns "
                f"{names}; list the scans in a new folder by `anomaly prepare`."
            )
        # Manifests of earlier versions have no hash of their rows.
        if b"sha256" in metadata and metadata[b"sha256"] != _digest(records, metadata[b"root"]):
            raise ManifestError(
                f"{path} is damaged: its rows are not those that were written; make it again by "
                "`anomaly prepare`."
            )
        unknown = {record["reason"] for record in records} - {"", *Reason}
        if unknown:
            raise ManifestError(
                f"{path} is of another version: it gives reasons that this one does not know, "
                f"{sorted(map(str, unknown))}; list the scans in a new folder by `anomaly prepare`."
            )
        instead = {name: _LATER[name] for name in lacking}
        rows = tuple(ManifestRow(**{**record, **instead}) for record in records)
        manifest = cls(root or Path(os.fsdecode(metadata[b"root"])), rows)
        prove_disjoint(manifest)
        return manifest

    def write(self, path: Path) -> None:
        """Write to parquet with mode 0600, atomically.

        Parameters
        ----------
        path : Path
            Its folder must exist. An existing file is replaced.
        """
        table = pa.Table.from_pylist([asdict(row) for row in self.rows], schema=_SCHEMA)
        root = os.fsencode(self.root.absolute())
        digest = _digest(table.to_pylist(), root)
        table = table.replace_schema_metadata({b"root": root, b"sha256": digest})
        with whole(path, mode=0o600) as stream:
            pq.write_table(table, stream, compression="zstd")

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

        It does not depend on the folder, the file names or their order, so two sites can show that
        they used the same data in the same splits.
        """
        digest = hashlib.sha256()
        lines = [f"{r.sha256} {r.frame} {r.split} {r.label}\n" for r in self.select()]
        for line in sorted(lines):
            digest.update(line.encode())
        return digest.hexdigest()

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Count rows by ``(split, label, reason)``; the reason of usable rows is ``"ok"``."""
        return dict(
            sorted(Counter((r.split, r.label, r.reason or r.status) for r in self.rows).items())
        )


def _digest(records: Iterable[Mapping[str, object]], root: bytes) -> bytes:
    """Hash of all rows of a manifest: a bit error on disk must not change a scan's split."""
    digest = hashlib.sha256(root)
    for record in records:
        digest.update(repr(tuple(record.values())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest().encode()


def pixel_hash(pixels: NDArray[np.float32]) -> str:
    """Hash of a picture, 32 hex digits, independent of its file format.

    The hash covers the size and the ranks of the grey values, not the values themselves: a JPEG
    saved as PNG, 12 bits stored in 16, and a TIFF with twice the range all have the same hash. A
    picture that was rotated, cropped, resized or recompressed has a different one.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        As shown.
    """
    # Integers of up to 16 bits are exact: k (2^16 - 1) / (2^b - 1) is never half an integer.
    steps = np.rint(pixels.astype(np.float64) * (2**16 - 1)).astype(np.uint16)
    ranks = np.cumsum(np.bincount(steps.ravel(), minlength=2**16) > 0).astype("<u4")
    digest = hashlib.sha256(f"{pixels.shape} ".encode())
    digest.update(ranks[steps].tobytes())
    return digest.hexdigest()[:32]


def scan_marks(row: ManifestRow) -> frozenset[str]:
    """Hashes of a scan's file and of its picture, which recognise it but do not locate it."""
    names = (f"{row.sha256} {row.frame}", f"pixels {row.pixels}" if row.pixels else "")
    return frozenset(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names if name)


def prove_disjoint(manifest: Manifest) -> None:
    """Check that no patient, no file and no picture is in two splits.

    Parameters
    ----------
    manifest : Manifest

    Raises
    ------
    ManifestError
        Any of them is in two splits. The message gives counts by splits, and names a scan by key,
        not by patient.
    """
    for what, shown in (("patient", "patient"), ("sha256", "file"), ("pixels", "picture")):
        splits: defaultdict[str, set[str]] = defaultdict(set)
        keys: dict[str, str] = {}
        for row in manifest.rows:
            if row.split and getattr(row, what):
                splits[getattr(row, what)].add(row.split)
                keys.setdefault(getattr(row, what), row.key)
        shared = {name for name, where in splits.items() if len(where) > 1}
        if shared:
            where = Counter(" + ".join(sorted(splits[name])) for name in shared)
            pairs = ", ".join(f"{count} in {names}" for names, count in sorted(where.items()))
            example = min(keys[name] for name in shared)
            raise ManifestError(
                f"{len(shared)} {shown}(s) are in more than "
                f"one split ({pairs}); one has scan {example}. Deal the splits anew by patient."
            )
