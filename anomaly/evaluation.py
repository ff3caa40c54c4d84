r"""How good a detector is, with intervals: image metrics and pixel metrics.

AUROC is the chance that an abnormal scan scores higher than a normal one (ties count half). Every
interval is a 95 % percentile bootstrap over *patients*: scans of one patient are not independent.
Labels evaluate here; they choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score

from anomaly.errors import CalibrationError

__all__ = [
    "Estimate",
    "PixelMetrics",
    "Rate",
    "auroc",
    "exact_rate",
    "image_metrics",
    "pixel_metrics",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval.

    Attributes
    ----------
    value, low, high : float
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Rate:
    """A share of scans with its exact 95 % (Clopper-Pearson) interval.

    Attributes
    ----------
    count, total : int
    value, low, high : float
    """

    count: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.count} of {self.total})"


@dataclass(frozen=True)
class PixelMetrics:
    """How well evidence finds the lesion's pixels, over all pixels of scans that have a mask.

    Attributes
    ----------
    average_precision : float
    prevalence : float
        Share of lesion pixels: the average precision of a map that knows nothing.
    ratio : float
        ``average_precision / prevalence``.
    scans : int
    """

    average_precision: float
    prevalence: float
    ratio: float
    scans: int


def auroc(
    scores: NDArray[np.float64],
    abnormal: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Area under the ROC curve with a patient-level bootstrap interval.

    Parameters
    ----------
    scores : ndarray (N,); higher = more anomalous
    abnormal : ndarray (N,) of bool
    patients : sequence of N str
    draws : int
        Bootstrap samples.
    seed : int

    Raises
    ------
    CalibrationError
        If one of the two kinds is missing.
    """
    if not abnormal.any() or abnormal.all():
        raise CalibrationError(
            f"{int(abnormal.sum())} of {len(abnormal)} scans are abnormal: AUROC needs both kinds"
        )
    # wins[i, j] = 1 if abnormal i scores above normal j, 1/2 at a tie: then every bootstrap sample
    # is one weighted mean of this table.
    difference = scores[abnormal][:, None] - scores[~abnormal][None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, index]
    positive, negative = weights[:, abnormal], weights[:, ~abnormal]
    total = positive.sum(1) * negative.sum(1)
    kept = total > 0  # a sample without one of the kinds has no AUROC
    areas = np.einsum("di,ij,dj->d", positive[kept], wins, negative[kept], optimize=True)
    low, high = np.quantile(areas / total[kept], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(wins.mean()), float(low), float(high))


def exact_rate(flags: NDArray[np.bool_]) -> Rate:
    """Share of True with its Clopper-Pearson interval; NaN-free: no scans is refused.

    Raises
    ------
    CalibrationError
        If there are no scans.
    """
    if not len(flags):
        raise CalibrationError("a rate over no scans: expected at least one")
    count, total = int(flags.sum()), len(flags)
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Rate(count, total, count / total, float(interval.low), float(interval.high))


def image_metrics(
    scores: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    abnormal: NDArray[np.bool_],
    patients: Sequence[str],
) -> dict[str, dict[str, float]]:
    """AUROC, average precision, and rates at the preset threshold, ready for JSON."""
    return {
        "auroc": asdict(auroc(scores, abnormal, patients)),
        "average_precision": {
            "value": float(average_precision_score(abnormal, scores)),
            "prevalence": float(abnormal.mean()),
        },
        "sensitivity": asdict(exact_rate(flagged[abnormal])),
        "false_alarms": asdict(exact_rate(flagged[~abnormal])),
    }


def pixel_metrics(
    evidence: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> PixelMetrics:
    """Pixel average precision of evidence maps against masks of the same shapes."""
    values = np.concatenate([e.ravel() for e in evidence])
    truth = np.concatenate([m.ravel() for m in masks])
    precision, prevalence = float(average_precision_score(truth, values)), float(truth.mean())
    return PixelMetrics(precision, prevalence, precision / prevalence, len(masks))
