"""Scores on disk -> verdicts: what a row says, with its evidence on the pixels of its scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.images.transforms import Frame, Preprocessing
from anomaly.data.readers.registry import read_scan
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import AnomalyError
from anomaly.regions import find_regions
from anomaly.store.bundle import Bundle
from anomaly.store.results import Provenance, Results, ScoreRow
from anomaly.types import JudgedScan, Orientation, Scan, ScanScore

__all__ = ["OperatingPoint", "matching_scores", "on_source", "scan_again"]


def matching_scores(
    results: Results, manifest: Manifest, bundle: Bundle
) -> tuple[list[ScoreRow], Provenance]:
    """Read scores and their provenance, if they fit a manifest and a bundle.

    Raises
    ------
    AnomalyError
        If there are none, or they were made with another manifest or bundle.
    """
    rows, provenance = results.read()
    known = {row.key for row in manifest.select()}
    fits = (provenance.manifest, provenance.bundle) == (manifest.hash, bundle.hash)
    # The hash of a manifest does not cover its pseudonyms: another site.key changes them.
    if not fits or any(row.key not in known for row in rows if row.status == "scored"):
        raise AnomalyError(
            f"{results.folder} was made with another manifest or bundle than the run holds "
            f"now: run `anomaly score {results.folder.parent}` again"
        )
    return rows, provenance


def scan_again(config: Config, scan: ManifestRow) -> Scan:
    """Read the pixels of a listed scan once more, to show them.

    Raises
    ------
    ScanError
        If they can no longer be read, or are not those that were listed.
    """
    path = config.data.root / scan.path
    return read_scan(path, scan.frame, config.intensity, sha256=scan.sha256)


def on_source(
    evidence: NDArray[np.float32], scan: ManifestRow, how: Preprocessing
) -> NDArray[np.float32]:
    """Bring evidence as it is kept onto the pixels of its scan as shown, (H, W) float32."""
    return Frame((scan.rows, scan.columns), how.size, how.geometry).to_source(evidence)


@dataclass(frozen=True)
class OperatingPoint:
    """What all verdicts of a run are measured by; can be sent to a process.

    Attributes
    ----------
    alpha : float
        The rate at which the flags were raised.
    threshold : float
        Score at and above which a scan is flagged.
    evidence_threshold, evidence_ceiling : float
        Evidence at which a region begins, and where the colour scale ends.
    calibration_scans : int
    bundle : str
        Its hash.
    preprocessing : Preprocessing
        Of the network whose frame evidence is kept in.
    """

    alpha: float
    threshold: float
    evidence_threshold: float
    evidence_ceiling: float
    calibration_scans: int
    bundle: str
    preprocessing: Preprocessing

    @classmethod
    def of(cls, bundle: Bundle, alpha: float) -> OperatingPoint:
        """Read the norm of a bundle.

        Raises
        ------
        NotCalibrated
            If the bundle is not calibrated.
        """
        calibrated = bundle.calibration()
        return cls(
            alpha,
            calibrated.scores.threshold(alpha),
            calibrated.peaks.threshold(alpha),
            calibrated.evidence_ceiling(alpha),
            len(calibrated.scores.scores),
            bundle.hash,
            bundle.config.preprocessing,
        )

    def verdict(
        self,
        row: ScoreRow,
        scan: ManifestRow,
        evidence: NDArray[np.float32] | None,
        *,
        stored: bool = False,
    ) -> JudgedScan:
        """Put together what is known of a scored scan.

        Parameters
        ----------
        row : ScoreRow
            With status ``"scored"``.
        scan : ManifestRow
            Of the same scan.
        evidence : ndarray (size, size) float32, or None
            As kept, in the network's frame.
        stored : bool
            Evidence and regions are on the pixels as the file stores them, not as they are shown.
        """
        assert row.score is not None
        assert row.p_value is not None
        turn = Orientation.parse(scan.orientation if stored else "")
        spacing = None
        if scan.spacing_row is not None and scan.spacing_column is not None:
            spacing = (scan.spacing_row, scan.spacing_column)
        if spacing is not None and turn.transposed:
            spacing = spacing[::-1]
        on_pixels = None
        if evidence is not None:
            shown = on_source(evidence, scan, self.preprocessing)
            on_pixels = np.ascontiguousarray(turn.store(shown))
        return JudgedScan(
            ScanScore(row.key, row.score, row.features or {}, on_pixels),
            row.p_value,
            self.alpha,
            self.threshold,
            bool(row.flagged),
            () if on_pixels is None else find_regions(on_pixels, self.evidence_threshold, spacing),
        )
