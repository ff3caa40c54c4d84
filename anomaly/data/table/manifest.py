"""The table of scans: one row a scan, with its hash, its label and its split.

The manifest is the one place where pseudonyms meet identities, so it is written for its owner's
eyes only (mode 0600). Everything downstream names a scan by its key::

    key = pseudonym(site key, SOPInstanceUID + "/" + frame)

It is made from a folder (`anomaly.data.table.listing`) and dealt into splits by patient
(`anomaly.data.table.splits`). That they are disjoint is proved each time a manifest is read: a
patient, or a file, that is in two splits makes every figure computed from them worthless.
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
    """One scan, or one file or frame that cannot be used and why.

    Attributes
    ----------
    key : str
        Pseudonym; unique among rows with status ``"ok"``.
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
        Size in pixels, as shown upright, and number of grey values; 0 where the scan cannot be
        used.
    spacing_row, spacing_column : float or None
        Height and width of a pixel in mm.
    spacing_source : str
    orientation : str
        How the stored pixels are turned to show them upright (`anomaly.types.Orientation`).
    burned_in, synthetic : bool
    pixels : str
        `pixel_hash` of the scan as it is shown; empty where it cannot be used.
    mask : str
        Hash of the file of its lesion mask, for evaluation; empty where it has none.
    label : str
        From the folder layout; empty where no pattern matches.
    site : str
        As the configuration names places of the archive; empty where no pattern matches.
    split : str
        One of `anomaly.data.table.splits.SPLITS`, or empty before they are dealt and for skipped
        rows.
    status : {"ok", "skipped"}
    reason : str
        Of a skipped row, a word of `anomaly.errors.Reason`; may be shared.
    detail : str
        Sentence for a person; may quote paths and file contents. Of a usable scan, what its file
        says and could not be used, such as a window of no width.
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
        """Return this row as one that is not used, in no split."""
        return replace(self, split="", status="skipped", reason=reason.value, detail=detail)


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


NOT_LISTED = "not listed"
"""Hash of the mask of a scan that an earlier version has listed: nobody knows it."""

_LATER = {"pixels": "", "mask": NOT_LISTED}
"""Columns that manifests of earlier versions lack, and what stands for them."""


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
            The file is not a manifest, or is damaged, or a patient, file or picture is in two
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
        # Manifests of earlier versions have no hash.
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
        """Write to parquet with mode 0600; the file appears whole or not at all.

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


def _digest(records: Iterable[Mapping[str, object]], root: bytes) -> bytes:
    """Hash of all that a manifest says: a disk that loses a bit must not deal a scan anew."""
    digest = hashlib.sha256(root)
    for record in records:
        digest.update(repr(tuple(record.values())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest().encode()


def pixel_hash(pixels: NDArray[np.float32]) -> str:
    """Name a picture, 32 hex digits: the same for the same picture in any container.

    Of its size and of the order of its grey values, not of the values themselves: the same JPEG as
    PNG, 12 bits in 16, a TIFF of twice the range have one name. A picture that was turned, cropped,
    resized or compressed again has another.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        As shown.
    """
    # Integers of up to 16 bits come out exactly: k (2^16 - 1) / (2^b - 1) is never half an integer.
    steps = np.rint(pixels.astype(np.float64) * (2**16 - 1)).astype(np.uint16)
    ranks = np.cumsum(np.bincount(steps.ravel(), minlength=2**16) > 0).astype("<u4")
    digest = hashlib.sha256(f"{pixels.shape} ".encode())
    digest.update(ranks[steps].tobytes())
    return digest.hexdigest()[:32]


def scan_marks(row: ManifestRow) -> frozenset[str]:
    """Names of a scan by its file and by its picture: to recognise it, not to find it."""
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
        Says how many of them are in which splits, and names scans by key, not by patient.
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
