r"""ROC curve of a detector with a confidence band.

For threshold ``s`` and weights ``w`` of the scans,

.. math:: f(s) = \frac{\sum_{normal} w_i [s_i \ge s]}{\sum_{normal} w_i}, \qquad
          h(s) = \frac{\sum_{abnormal} w_i [s_i \ge s]}{\sum_{abnormal} w_i} ,

false alarms and sensitivity, joined by straight lines from (0, 0) to (1, 1). All weights are 1 for
the curve; for the band they are the bootstrap counts of each scan's patient
(`anomaly.evaluation.metrics`). The area under the curve is `anomaly.evaluation.metrics.auroc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import CalibrationError
from anomaly.evaluation.metrics import CONFIDENCE, patient_weights

__all__ = ["Roc", "roc"]

_RATES: NDArray[np.float64] = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Roc:
    """A curve and its pointwise 95 % band.

    Attributes
    ----------
    false_alarms, sensitivity : ndarray (k,) float64 in [0, 1]
        Corners of the curve, from (0, 0) to (1, 1).
    rates, low, high : ndarray (g,) float64 in [0, 1]
        False-alarm rates, and the bounds of 95 % of the bootstrap sensitivities at each.
    """

    false_alarms: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    rates: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def roc(
    scores: NDArray[np.float64],
    abnormal: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Roc:
    """ROC curve with a patient-level bootstrap band.

    Parameters
    ----------
    scores : ndarray (N,); higher = more anomalous
    abnormal : ndarray (N,) of bool
    patients : sequence of N str
    draws : int
        Bootstrap samples; one without normal or without abnormal scans is left out.
    seed : int

    Raises
    ------
    CalibrationError
        If there are no normal or no abnormal scans.
    """
    if not abnormal.any() or abnormal.all():
        raise CalibrationError(
            f"{int(abnormal.sum())} of {len(abnormal)} scans are abnormal: a ROC curve needs both "
            "kinds"
        )
    rank = np.unique(-scores, return_inverse=True)[1]  # 0 is the highest
    weights, owner = patient_weights(patients, draws, seed)
    drawn = []
    for of_patients in weights:
        of_scans = of_patients[owner].astype(np.float64)
        if of_scans[abnormal].any() and of_scans[~abnormal].any():
            drawn.append(np.interp(_RATES, *_corners(rank, abnormal, of_scans)))
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    low, high = np.quantile(np.array(drawn), tails, axis=0)
    return Roc(*_corners(rank, abnormal, np.ones(len(scores))), _RATES, low, high)


def _corners(
    rank: NDArray[np.intp], abnormal: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    normal_counts = np.bincount(rank, weights * ~abnormal)
    abnormal_counts = np.bincount(rank, weights * abnormal)
    false_alarms = np.concatenate([[0.0], normal_counts.cumsum() / normal_counts.sum()])
    sensitivity = np.concatenate([[0.0], abnormal_counts.cumsum() / abnormal_counts.sum()])
    return false_alarms, sensitivity
