"""Scored normal scans -> the calibration of a bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomaly.data.table.manifest import scan_marks
from anomaly.detection.calibration import Calibration, Spread
from anomaly.scoring.scorer import ScoredScan
from anomaly.store.bundle import Calibrated

__all__ = ["calibration_of"]


def calibration_of(
    scans: Sequence[ScoredScan], alpha: float, *, manifest_hash: str, under_nuisance: bool
) -> Calibrated:
    """Return the calibration given by held-out normal scans.

    Parameters
    ----------
    scans : sequence of ScoredScan
        Normal scans that were not used in training.
    alpha : float
        Stated false-alarm rate.
    manifest_hash : str
        Hash of the table of scans that lists them; empty if there is none.
    under_nuisance : bool
        Whether they were scored under random mild acquisition changes.

    Raises
    ------
    CalibrationError
        If there are no scans, or a score is not finite.
    """
    return Calibrated(
        Calibration.from_scores(np.array([scan.score for scan in scans])),
        Calibration.from_scores(np.array([scan.peak for scan in scans])),
        alpha,
        manifest_hash,
        {
            name: Spread.of(np.array([scan.features[name] for scan in scans]))
            for name in (scans[0].features if scans else {})
        },
        under_nuisance,
        frozenset(mark for scan in scans for mark in scan_marks(scan.source.row)),
    )
