"""A scored scan and a bundle -> its verdict: p-value, flag and regions."""

from __future__ import annotations

import numpy as np

from anomaly.regions import find_regions
from anomaly.scoring.scorer import Outcome, ScoredScan
from anomaly.store.bundle import Bundle
from anomaly.types import Verdict

__all__ = ["judge"]


def judge(outcome: Outcome, bundle: Bundle, alpha: float, path: str = "") -> Verdict:
    """Return the verdict on a scan by the calibration of a bundle.

    Parameters
    ----------
    outcome : ScoredScan, or (ManifestRow, ScanError)
    bundle : Bundle
        If it is not calibrated, the verdict has a score, but no p-value, flag or region.
    alpha : float
        Stated false-alarm rate.
    path : str
        The caller's name for the scan's file.

    Raises
    ------
    TooFewCalibrationScans
        If the bundle was calibrated on too few scans for that rate.
    """
    if not isinstance(outcome, ScoredScan):
        row, error = outcome
        return Verdict(path, row.frame, alpha, reason=error.reason, detail=error.message)
    scored = Verdict(
        path,
        outcome.source.row.frame,
        alpha,
        score=outcome.score,
        evidence=outcome.source_evidence,
        evidence_peak=outcome.peak,
        features=outcome.features,
        explanation=outcome.explanation,
        part=outcome.part,
        spread=outcome.source.frame.to_source(outcome.spread) if outcome.explanation else None,
        seen=bundle.has_seen(outcome.source.row),
    )
    if bundle.calibrated is None:
        return scored
    scores, peaks = bundle.calibrated.scores, bundle.calibrated.peaks
    limit = peaks.threshold(alpha)
    return scored.calibrated(
        p_value=float(scores.p_values(np.array([outcome.score]))[0]),
        flag=outcome.score >= scores.threshold(alpha),
        regions=tuple(find_regions(outcome.source_evidence, limit, outcome.source.spacing)),
    )
