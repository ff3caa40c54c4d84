"""dicom: scores -> DICOM objects for the archive that the scans came from.

Every scored scan gets its report; what shows pixels is made of flagged scans alone, as an overlay
of a scan that is like any other says nothing. Scans that are no DICOM files, or of which no
evidence map is kept, get nothing, and are counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.bundle import Bundle, read_bundle
from anomaly.config import Config
from anomaly.data.intensity import IntensityPolicy
from anomaly.data.manifest import Manifest, ManifestRow
from anomaly.data.readers import read_scan
from anomaly.data.zips import on_disk
from anomaly.errors import ConfigError, ScanError, UnsupportedScan
from anomaly.logs import Public
from anomaly.reporting.dicom import KINDS, DicomCase, Kind, write_objects
from anomaly.results import ScoreRow
from pipelines.run import RunFolder, progress_bar
from pipelines.verdicts import matching_scores, verdict_of

__all__ = ["DEFAULT_KINDS", "Written", "kinds_of", "write_dicom"]

log = logging.getLogger(__name__)

DEFAULT_KINDS: tuple[Kind, ...] = ("report", "overlay")


@dataclass(frozen=True)
class Written:
    """What was made of a run.

    Attributes
    ----------
    paths : tuple of Path
        One file an object.
    left_out : dict of str to int
        Reason -> objects that were not made.
    """

    paths: tuple[Path, ...]
    left_out: dict[str, int]


def kinds_of(text: str) -> tuple[Kind, ...]:
    """Read kinds of objects with commas between them.

    Raises
    ------
    ConfigError
        One of them is no kind.
    """
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in KINDS]
    if wrong:
        raise ConfigError(f"objects are {text!r}: {wrong[0]!r} is none of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def write_dicom(
    run: RunFolder,
    config: Config,
    kinds: Sequence[Kind] = DEFAULT_KINDS,
    folder: Path | None = None,
) -> Written:
    """Write the verdicts of a run as DICOM objects.

    Parameters
    ----------
    run : RunFolder
    config : Config
    kinds : sequence of Kind
    folder : Path, optional
        By default ``RUN/dicom``; made with mode 0700, as the files name patients.

    Raises
    ------
    NotCalibrated
        If the bundle is not calibrated.
    AnomalyError
        If the run is not scored, or a file cannot be written.
    """
    bundle = read_bundle(run.bundle)
    bundle.calibration()
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rows, provenance = matching_scores(run, manifest, bundle)
    by_key = {row.key: row for row in manifest.select()}
    target = folder or run.dicom
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o700)
    writer = _Writer(run, config.data.root, config.intensity, bundle, provenance.alpha, target)
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    scored = [row for row in rows if row.status == "scored"]
    with progress_bar(len(scored), "writing DICOM", "scan") as bar:
        for row in scored:
            wanted = [kind for kind in kinds if row.flagged or kind == "report"]
            made, refused = writer.write(row, by_key[row.key], wanted)
            paths += made
            left_out.update(refused)
            bar.update()
    log.info("%d DICOM objects of %d scans", len(paths), len(scored))
    for reason, count in left_out.most_common():
        log.info("%d objects left out: %s", count, Public(reason))
    run.record("dicom", {"objects": len(paths), "left_out": dict(left_out)})
    return Written(tuple(paths), dict(left_out))


@dataclass(frozen=True)
class _Writer:
    """What the objects of every scan of a run have in common."""

    run: RunFolder
    root: Path
    intensity: IntensityPolicy
    bundle: Bundle
    alpha: float
    folder: Path

    def write(
        self, row: ScoreRow, scan: ManifestRow, kinds: Sequence[Kind]
    ) -> tuple[list[Path], list[str]]:
        """Write the objects of a scan; return their files, and a reason for each that is not."""
        paths: list[Path] = []
        reasons: list[str] = []
        try:
            if scan.kind != "dicom":
                raise UnsupportedScan("not dicom", "the scan names no patient, study or series")
            with on_disk(self.root / scan.path) as source:
                case = self._case(source, row, scan)
                for kind in kinds:
                    try:
                        paths += write_objects(case, [kind], self.folder)
                    except ScanError as error:
                        reasons.append(error.reason)
        except ScanError as error:
            return [], [error.reason] * len(kinds)
        return paths, reasons

    def _case(self, source: Path, row: ScoreRow, scan: ManifestRow) -> DicomCase:
        calibrated = self.bundle.calibration()
        verdict = verdict_of(self.run, self.bundle, self.alpha, row, scan, stored=True)
        if verdict.scan.evidence is None:
            raise UnsupportedScan("no map kept", "score with results.maps = all")
        shown = read_scan(source, scan.frame, self.intensity)
        return DicomCase(
            source=source,
            frame=scan.frame,
            verdict=verdict,
            image=np.ascontiguousarray(shown.orientation.store(shown.pixels)),
            evidence_threshold=calibrated.peaks.threshold(self.alpha),
            evidence_ceiling=calibrated.evidence_ceiling,
            calibration_scans=len(calibrated.scores.scores),
            bundle=self.bundle.hash,
        )
