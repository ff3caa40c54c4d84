r"""Image metrics and pixel metrics of a detector, with intervals.

AUROC is the probability that an abnormal scan scores higher than a normal one (ties count half).
Every interval is a 95 % percentile bootstrap over *patients*: scans of one patient are not
independent. Labels are used only for evaluation, never for a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from sklearn.metrics import average_precision_score

from anomaly.errors import CalibrationError

__all__ = [
    "Estimate",
    "PixelMetrics",
    "Rate",
    "RealisedRates",
    "auroc",
    "average_precision",
    "exact_rate",
    "image_metrics",
    "patient_mean",
    "patient_weights",
    "pixel_average_precision",
    "pixel_metrics",
    "pointing_hits",
    "realised_false_alarms",
]

CONFIDENCE = 0.95

BINS = 4096
"""Most distinct values in a bootstrap of the average precision; more are binned by quantile."""


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
    """Agreement of evidence with lesion masks, over all pixels of scans that have a mask.

    Attributes
    ----------
    average_precision : float
    prevalence : float
        Share of lesion pixels: the average precision of an uninformative map.
    ratio : float
        ``average_precision / prevalence``.
    scans : int
    """

    average_precision: float
    prevalence: float
    ratio: float
    scans: int


@dataclass(frozen=True)
class RealisedRates:
    """False-alarm rates of S random splits of normal scans into calibration and evaluation.

    Attributes
    ----------
    rates : ndarray (S,) float64
        Share of the evaluation scans that is flagged.
    calibration, counted : ndarray (S,) int
        Number of scans that set the threshold, and of scans over which the rate is counted.
    """

    rates: NDArray[np.float64]
    calibration: NDArray[np.intp]
    counted: NDArray[np.intp]


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
        If there are no normal or no abnormal scans.
    """
    if not abnormal.any() or abnormal.all():
        raise CalibrationError(
            f"{int(abnormal.sum())} of {len(abnormal)} scans are abnormal: AUROC needs both kinds"
        )
    # wins[i, j] = 1 if abnormal i scores above normal j, 1/2 at a tie; so every bootstrap sample
    # is a weighted mean of this table.
    difference = scores[abnormal][:, None] - scores[~abnormal][None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    weights, index = patient_weights(patients, draws, seed)
    weights = weights[:, index]
    positive, negative = weights[:, abnormal], weights[:, ~abnormal]
    total = positive.sum(1) * negative.sum(1)
    kept = total > 0  # a sample without one of the kinds has no AUROC
    areas = np.einsum("di,ij,dj->d", positive[kept], wins, negative[kept], optimize=True)
    return _estimate(float(wins.mean()), areas / total[kept])


def average_precision(
    scores: NDArray[np.float64],
    abnormal: NDArray[np.bool_],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Average precision (as in scikit-learn) with a patient-level bootstrap interval.

    An uninformative detector reaches the prevalence. Parameters and errors as in `auroc`.
    """
    if not abnormal.any() or abnormal.all():
        raise CalibrationError(
            f"{int(abnormal.sum())} of {len(abnormal)} scans are abnormal: average precision needs "
            "both kinds"
        )
    weights, index = patient_weights(patients, draws, seed)
    return _precision_estimate(scores, abnormal, weights, index)


def patient_mean(
    values: NDArray[np.float64] | NDArray[np.bool_],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean over scans of values (N,), such as hits, with a patient-level bootstrap interval.

    Raises
    ------
    CalibrationError
        If there are no scans.
    """
    if not len(values):
        raise CalibrationError("a mean over no scans: expected at least one")
    weights, index = patient_weights(patients, draws, seed)
    drawn = weights[:, index].astype(np.float64)
    return _estimate(float(np.mean(values)), drawn @ values / drawn.sum(1))


def exact_rate(flags: NDArray[np.bool_]) -> Rate:
    """Share of True with its Clopper-Pearson interval.

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
    """AUROC, average precision, and rates at the preset threshold, as plain data for JSON."""
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


def pixel_average_precision(
    evidence: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.bool_]],
    patients: Sequence[str],
    *,
    draws: int = 200,
    seed: int = 0,
) -> Estimate:
    """Pixel average precision of N maps, with a patient-level bootstrap interval.

    Parameters
    ----------
    evidence, masks : sequences of N arrays, of equal shapes pair by pair
    patients : sequence of N str
    draws, seed : int
    """
    weights, index = patient_weights(patients, draws, seed)
    owner = np.repeat(index, [mask.size for mask in masks])
    values = np.concatenate([e.ravel() for e in evidence])
    truth = np.concatenate([m.ravel() for m in masks])
    return _precision_estimate(values, truth, weights, owner)


def pointing_hits(
    evidence: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Pointing game: whether the largest evidence of each of N maps is within its mask.

    Parameters
    ----------
    evidence, masks : sequences of N arrays, of equal shapes pair by pair

    Returns
    -------
    ndarray (N,) bool
        Of equal largest values the first in reading order counts.

    Raises
    ------
    CalibrationError
        If a map and its mask differ in shape.
    """
    hits = []
    for index, (values, mask) in enumerate(zip(evidence, masks, strict=True)):
        if values.shape != mask.shape:
            raise CalibrationError(
                f"map {index} is {values.shape} and its mask {mask.shape}: expected equal shapes"
            )
        hits.append(bool(mask.ravel()[values.argmax()]))
    return np.array(hits, dtype=bool)


def realised_false_alarms(
    scores: NDArray[np.float64],
    counted: NDArray[np.float64],
    patients: Sequence[str],
    flag: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]],
    *,
    splits: int = 200,
    seed: int = 0,
) -> RealisedRates:
    """False-alarm rates with random halves of the patients for calibration and for evaluation.

    Parameters
    ----------
    scores : ndarray (N,)
        Scores of normal scans, for calibration.
    counted : ndarray (N,)
        Scores of the same scans for counting: equal to `scores`, or of altered copies; NaN if a
        scan is not to be counted.
    patients : sequence of N str
        All scans of a patient are in the same half.
    flag : callable
        ``flag(calibration scores (n,), scores (m,))`` -> flags (m,).
    splits, seed : int

    Returns
    -------
    RealisedRates
        Rates of the splits with scans in both halves.

    Raises
    ------
    CalibrationError
        If there is no such split.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    rates, calibration, totals = [], [], []
    for _ in range(splits):
        calibrates = (rng.permutation(len(names)) < len(names) // 2)[index]
        evaluated = counted[~calibrates & ~np.isnan(counted)]
        if calibrates.any() and len(evaluated):
            rates.append(float(flag(scores[calibrates], evaluated).mean()))
            calibration.append(int(calibrates.sum()))
            totals.append(len(evaluated))
    if not rates:
        raise CalibrationError(
            f"{len(names)} patients with normal scans cannot be split into two halves: expected at "
            "least 2, some with scans to count"
        )
    return RealisedRates(np.array(rates), np.array(calibration), np.array(totals))


def patient_weights(
    patients: Sequence[str], draws: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Bootstrap counts of P patients, (draws, P), and the index of each scan's patient, (N,)."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return weights, index


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def _precision_estimate(
    scores: NDArray[np.floating],
    truth: NDArray[np.bool_],
    weights: NDArray[np.int64],
    index: NDArray[np.intp],
) -> Estimate:
    """Average precision; every bootstrap sample is a weighted sum of the patients' histograms."""

    def cumulative(counted: NDArray[np.generic]) -> NDArray[np.float64]:
        """Weighted counts down to each rank, (ranks, draws)."""
        histograms = sparse.csr_array((counted.astype(np.float64), (index, rank)), shape)
        return np.asarray((histograms.T @ weights.T).cumsum(0))

    edges = np.unique(scores)
    if len(edges) > BINS:
        edges = np.unique(np.quantile(edges, np.linspace(0, 1, BINS)))
    rank = len(edges) - np.searchsorted(edges, scores, side="right")  # 0 is the highest
    shape = (weights.shape[1], len(edges) + 1)
    positives, every = cumulative(truth), cumulative(np.ones(len(truth)))
    # A sample without positives or without negatives has no average precision.
    kept = (positives[-1] > 0) & (positives[-1] < every[-1])
    positives, every = positives[:, kept], np.maximum(every[:, kept], 1)
    areas = (np.diff(positives, axis=0, prepend=0) * positives / every).sum(0) / positives[-1]
    return _estimate(float(average_precision_score(truth, scores)), areas)
