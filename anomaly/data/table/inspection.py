"""Inspection of one file: its rows in the table of scans; no file content can make it raise."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly.data.images.network_images import view_scan
from anomaly.data.images.transforms import Preprocessing
from anomaly.data.readers.dicom import instance_uid
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import content_hash, kind_of, open_frames
from anomaly.data.readers.zips import on_disk
from anomaly.data.table.gate import OPEN_GATE, Gate
from anomaly.data.table.manifest import ManifestRow, pixel_hash
from anomaly.data.table.media import listed_rows, unread_row
from anomaly.data.table.pseudonyms import scan_key
from anomaly.errors import ConfigError, Reason, ScanError
from anomaly.types import Scan

__all__ = ["Inspection"]

VIEWS = frozenset(
    ["AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "CC", "ML", "MLO"]
)
"""View positions that DICOM defines (PS3.3 C.8.11.5, C.8.1.2), and the usual word for a lateral.

Views go into shared tables, so any other text in this tag becomes ``"other"``."""


@dataclass(frozen=True)
class Inspection:
    """Settings for the inspection of files.

    The patient is the DICOM PatientID. If that is empty, it is the match of `patient_pattern` in
    the file name; without a pattern, the DICOM study; and without a study, *each file counts as a
    separate patient*, so set a pattern if a patient may have two files.

    Attributes
    ----------
    root : Path
        Paths are relative to it.
    policy : IntensityPolicy
    site_key : bytes
        Secret behind the pseudonyms; see `load_site_key`.
    patient_pattern : str or None
        Regular expression searched in the file name; its first group, or the whole match if it has
        no group, is the patient. A file without a match is skipped with ``"no patient"``.
    gate : Gate
        Skips scans by their tags.
    preprocessing : Preprocessing or None
        If given, also check that each scan can be converted to a network image; a scan that cannot
        is skipped here, so that it does not fail during training.

    Raises
    ------
    ConfigError
        `patient_pattern` is not a regular expression.
    """

    root: Path
    policy: IntensityPolicy
    site_key: bytes
    patient_pattern: str | None = None
    gate: Gate = OPEN_GATE
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        """Check that `patient_pattern` is a regular expression."""
        try:
            re.compile(self.patient_pattern or "")
        except re.error as error:
            raise ConfigError(
                f"patient_pattern {self.patient_pattern!r} is not a regular expression: {error}."
            ) from error

    def rows(self, relative: str) -> list[ManifestRow]:
        """Rows of one file; no file content can make this raise."""
        row = unread_row(relative, self.site_key)
        try:
            with on_disk(self.root / relative) as path:
                rows = self._frames(path, row)
                if any(row.reason == "media directory" for row in rows):
                    rows += listed_rows(path, relative, self.site_key)
        except ScanError as error:
            return [row.skipped(error.reason, error.message)]
        # Do not report the temporary path to which a member of a zip file was unpacked.
        there = str(self.root / relative)
        return [replace(row, detail=row.detail.replace(str(path), there)) for row in rows]

    def _frames(self, path: Path, row: ManifestRow) -> list[ManifestRow]:
        rows = []
        try:
            kind = kind_of(path)
            sha256 = content_hash(path)
            row = replace(row, kind=kind, sha256=sha256, key=scan_key(self.site_key, sha256, 0))
            frames = open_frames(path, self.policy)
            self.gate.check_frames(len(frames))
            for index, frame in enumerate(frames):
                here = replace(row, frame=index, key=scan_key(self.site_key, sha256, index))
                if isinstance(frame, ScanError):
                    instance = instance_uid(path) if kind == "dicom" else ""
                    here = replace(here, instance=instance)
                    rows.append(here.skipped(frame.reason, frame.message))
                else:
                    rows.append(self._judged(self._described(here, frame), frame))
        except ScanError as error:
            instance = instance_uid(path) if row.kind == "dicom" else ""
            return [replace(row, instance=instance).skipped(error.reason, error.message)]
        return rows

    def _described(self, row: ManifestRow, scan: Scan) -> ManifestRow:
        identity = scan.identity
        instance = identity.instance or row.sha256
        height, width = scan.spacing or (None, None)
        return replace(
            row,
            key=scan_key(self.site_key, instance, row.frame),
            patient=self._patient(row, scan),
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

    def _judged(self, row: ManifestRow, scan: Scan) -> ManifestRow:
        """Skip a readable scan that the gate or preprocessing refuses, or that has no patient."""
        try:
            self.gate.check(scan)
            if self.preprocessing is not None:
                view_scan(scan, self.preprocessing)
        except ScanError as error:
            return row.skipped(error.reason, error.message)
        if row.patient:
            return row
        return row.skipped(
            Reason.NO_PATIENT,
            f"{row.path} names no patient, and patient_pattern finds none in its file name; "
            "without one, the scan cannot be kept out of a second split.",
        )

    def _patient(self, row: ManifestRow, scan: Scan) -> str:
        """Patient of a scan, or an empty string."""
        if scan.identity.patient:
            return scan.identity.patient
        if self.patient_pattern is None:
            study = scan.identity.study
            return f"study:{study}" if study else f"file:{row.sha256}"
        match = re.search(self.patient_pattern, Path(row.path).name)
        if match is None:
            return ""
        return (match[1] if match.re.groups else match[0]) or ""


def _view(position: str) -> str:
    return position if position in VIEWS or not position else "other"
