"""Scores on disk -> verdicts: a row of results, with the evidence on the pixels of its scan."""

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
    """Read scores and their provenance, and check that they match a table of scans and a bundle.

    Raises
    ------
    AnomalyError
        If there are no scores, or they were made with another table or bundle.
    """
    rows, provenance = results.read()
    known = {row.key for row in manifest.select()}
    fits = (provenance.manifest, provenance.bundle) == (manifest.hash, bundle.hash)
    # The hash of a manifest does not cover its pseudonyms, which depend on site.key.
    if not fits or any(row.key not in known for row in rows if row.status == "scored"):
        raise AnomalyError(
            f"{results.folder} was made with another manifest or bundle than the run holds "
            f"now: run `anomaly score {results.folder.parent}` again"
        )
    return rows, provenance


def scan_again(config: Config, scan: ManifestRow) -> Scan:
    """Read the pixels of a listed scan again, for display.

    Raises
    ------
    ScanError
        If they can no longer be read, or the file has changed since it was listed.
    """
    path = config.data.root / scan.path
    return read_scan(path, scan.frame, config.intensity, sha256=scan.sha256)


def on_source(
    evidence: NDArray[np.float32], scan: ManifestRow, how: Preprocessing
) -> NDArray[np.float32]:
    """Map stored evidence to the pixels of its scan as displayed, (H, W) float32."""
    return Frame((scan.rows, scan.columns), how.size, how.geometry).to_source(evidence)


@dataclass(frozen=True)
class OperatingPoint:
    """The false-alarm rate of a run and the thresholds that follow from it; can be pickled.

    Attributes
    ----------
    alpha : float
        False-alarm rate of the flags.
    threshold : float
        Score at and above which a scan is flagged.
    evidence_threshold, evidence_ceiling : float
        Evidence at and above which a pixel belongs to a region, and upper end of the colour scale.
    calibration_scans : int
        Number of calibration scans.
    bundle : str
        Hash of the bundle.
    preprocessing : Preprocessing
        Preprocessing of the network, which defines the frame of stored evidence.
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
        """Return the operating point of a bundle at alpha.

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
        spread: NDArray[np.float32] | None = None,
        *,
        stored: bool = False,
    ) -> JudgedScan:
        """Return the verdict on a scored scan.

        Parameters
        ----------
        row : ScoreRow
            Results with status ``"scored"``.
        scan : ManifestRow
            Row of the same scan in the table of scans.
        evidence, spread : ndarray (size, size) float32, or None
            As stored, in the network's frame.
        stored : bool
            Return evidence and regions on the pixels as the file stores them, not as displayed.
        """
        assert row.score is not None
        assert row.p_value is not None
        turn = Orientation.parse(scan.orientation if stored else "")
        spacing = None
        if scan.spacing_row is not None and scan.spacing_column is not None:
            spacing = (scan.spacing_row, scan.spacing_column)
        if spacing is not None and turn.transposed:
            spacing = spacing[::-1]
        on_pixels, where = (
            None
            if map_ is None
            else np.ascontiguousarray(turn.store(on_source(map_, scan, self.preprocessing)))
            for map_ in (evidence, spread)
        )
        return JudgedScan(
            ScanScore(
                row.key,
                row.score,
                row.features or {},
                on_pixels,
                row.part,
                row.explanation,
                where,
            ),
            row.p_value,
            self.alpha,
            self.threshold,
            bool(row.flagged),
            () if on_pixels is None else find_regions(on_pixels, self.evidence_threshold, spacing),
        )
