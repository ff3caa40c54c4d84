"""Scores on disk -> verdicts: what a row says, with its evidence on the pixels of its scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.bundle import Bundle
from anomaly.data.manifest import Manifest, ManifestRow
from anomaly.data.transforms import Frame
from anomaly.detection.heatmap import find_regions
from anomaly.errors import AnomalyError
from anomaly.results import Provenance, ScoreRow
from anomaly.types import Orientation, ScanScore, Verdict
from pipelines.run import RunFolder

__all__ = ["matching_scores", "source_evidence", "verdict_of"]


def matching_scores(
    run: RunFolder, manifest: Manifest, bundle: Bundle
) -> tuple[list[ScoreRow], Provenance]:
    """Read the run's scores and their provenance, if they fit its manifest and bundle.

    Raises
    ------
    AnomalyError
        If there are none, or they were made with another manifest or bundle.
    """
    rows, provenance = run.results.read()
    known = {row.key for row in manifest.select()}
    fits = (provenance.manifest, provenance.bundle) == (manifest.hash, bundle.hash)
    # The hash of a manifest does not cover its pseudonyms: another site.key changes them.
    if not fits or any(row.key not in known for row in rows if row.status == "scored"):
        raise AnomalyError(
            f"{run.results.folder} was made with another manifest or bundle than the run holds "
            f"now: run `anomaly score {run.path}` again"
        )
    return rows, provenance


def source_evidence(
    run: RunFolder, bundle: Bundle, row: ScoreRow, scan: ManifestRow
) -> NDArray[np.float32] | None:
    """Read a scan's evidence back onto its source pixels, (H, W) float32; None if not kept."""
    evidence = run.results.evidence(row)
    if evidence is None:
        return None
    how = bundle.config.preprocessing
    frame = Frame((scan.rows, scan.columns), how.size, how.geometry)
    return frame.to_source(evidence)


def verdict_of(
    run: RunFolder,
    bundle: Bundle,
    alpha: float,
    row: ScoreRow,
    scan: ManifestRow,
    *,
    stored: bool = False,
) -> Verdict:
    """Put together what is known of a scored scan.

    Parameters
    ----------
    run : RunFolder
    bundle : Bundle
    alpha : float
        The rate at which the flags were raised.
    row : ScoreRow
        With status ``"scored"``.
    scan : ManifestRow
        Of the same scan.
    stored : bool
        Evidence and regions are on the pixels as the file stores them, not as they are shown.

    Raises
    ------
    NotCalibrated
        If the bundle is not calibrated.
    """
    calibrated = bundle.calibration()
    assert row.score is not None
    assert row.p_value is not None
    evidence = source_evidence(run, bundle, row, scan)
    spacing = None
    if scan.spacing_row is not None and scan.spacing_column is not None:
        spacing = (scan.spacing_row, scan.spacing_column)
    turn = Orientation.parse(scan.orientation if stored else "")
    if evidence is not None:
        evidence = np.ascontiguousarray(turn.store(evidence))
    if spacing is not None and turn.transposed:
        spacing = spacing[::-1]
    limit = calibrated.peaks.threshold(alpha)
    return Verdict(
        ScanScore(row.key, row.score, row.features or {}, evidence),
        row.p_value,
        alpha,
        calibrated.scores.threshold(alpha),
        bool(row.flagged),
        () if evidence is None else find_regions(evidence, limit, spacing),
    )
