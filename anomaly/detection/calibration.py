r"""Split-conformal p-values, thresholds at a stated false-alarm rate, and bounds of the rate.

For a new normal scan with score ``s``, exchangeable with ``n`` calibration normals that were used
for neither the network nor the detector,

.. math:: p(s) = \frac{1 + \#\{i : s_i \ge s\}}{n + 1}, \qquad P(p \le \alpha) \le \alpha .

Given the calibration scans, the realised false-alarm rate of ``p <= alpha`` is
:math:`\mathrm{Beta}(l, n + 1 - l)` with :math:`l = \lfloor (n + 1) \alpha \rfloor` for continuous
scores. Fewer than ``1 / alpha - 1`` scans cannot support ``alpha`` at all. Source: Bates, Candes,
Lei, Romano, Sesia 2023, "Testing for outliers with conformal p-values".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anomaly.errors import CalibrationError, TooFewCalibrationScans

__all__ = ["Calibration", "Spread", "allowed_rank", "combined_p_value", "false_alarm_interval"]

TINY = float(np.finfo(np.float32).tiny)
"""Smallest normal float32. Smaller scores count as zero, as in comparisons of maps."""


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal scans.

    Attributes
    ----------
    scores : ndarray (n,) float64, ascending

    Examples
    --------
    Of nine normal scans, three score 7 or more; a tenth normal scan scores highest with a
    probability of 0.1.

    >>> normal = Calibration.from_scores(np.arange(1.0, 10.0))
    >>> normal.p_values(np.array([0.5, 7.0, 42.0])).tolist()
    [1.0, 0.4, 0.1]
    >>> normal.p_values(np.array([8.0, normal.threshold(0.2)])).tolist()
    [0.3, 0.2]
    """

    scores: NDArray[np.float64]

    @classmethod
    def from_scores(cls, scores: NDArray[np.float64]) -> Calibration:
        """Build a calibration from unsorted scores.

        Raises
        ------
        CalibrationError
            If there is no score or one is not finite.
        """
        if not len(scores) or not np.isfinite(scores).all():
            raise CalibrationError(
                f"{len(scores)} calibration scores, {int((~np.isfinite(scores)).sum())} not "
                "finite: expected at least one, all finite"
            )
        return cls(np.sort(_flushed(np.asarray(scores, dtype=np.float64))))

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Conformal p-values in ``[1 / (n + 1), 1]``; a tie counts as at least as unusual."""
        n = len(self.scores)
        at_least = n - np.searchsorted(self.scores, _flushed(scores), side="left")
        return np.asarray((1 + at_least) / (n + 1), dtype=np.float64)

    def threshold(self, alpha: float) -> float:
        """Smallest float score with ``p <= alpha``: ``score >= threshold`` is ``p <= alpha``.

        Raises
        ------
        CalibrationError
            If alpha is not within (0, 1).
        TooFewCalibrationScans
            If ``(n + 1) alpha < 1``.
        """
        rank = allowed_rank(len(self.scores), alpha)
        # p <= alpha needs fewer than `rank` calibration scores at or above the score, hence a
        # score strictly above the rank-th largest.
        limit = float(self.scores[len(self.scores) - rank])
        # For 0 not the next float64: maps are float32, and processors may flush denormals.
        return TINY if limit == 0 else float(np.nextafter(limit, np.inf))


def _flushed(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(scores) < TINY, 0.0, scores)


@dataclass(frozen=True)
class Spread:
    """Distribution of a feature over normal scans, for display only.

    Attributes
    ----------
    percentiles : ndarray (99,) float32, ascending
        From the 1st to the 99th. Values of single scans, such as the extremes, are not kept.
    """

    percentiles: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        """Compute the percentiles of finite values (n,), n >= 1."""
        return cls(np.percentile(values, np.arange(1, 100)).astype(np.float32))

    def percentile(self, number: int) -> float:
        """Return the percentile of a number, 1 to 99."""
        return float(self.percentiles[number - 1])


def combined_p_value(p_values: Sequence[float]) -> float | None:
    """Return the smallest of m p-values times m, at most 1; None if there are none.

    The result is a p-value for any dependence between them (Bonferroni).

    Examples
    --------
    >>> combined_p_value([0.5, 0.02, 0.9])
    0.06
    """
    return min(1.0, len(p_values) * min(p_values)) if p_values else None


def allowed_rank(n: int, alpha: float) -> int:
    """Largest ``l`` with ``l / (n + 1) <= alpha`` as floats: ``floor((n + 1) alpha)``.

    It uses the same comparison as p-values, so that ``p <= alpha`` and `Calibration.threshold`
    always agree.

    Raises
    ------
    CalibrationError
        If alpha is not within (0, 1).
    TooFewCalibrationScans
        If l would be 0.

    Examples
    --------
    >>> allowed_rank(99, 0.05)
    5
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha is {alpha}: expected a rate between 0 and 1, such as 0.05")
    rank = math.floor((n + 1) * alpha) + 1
    while rank / (n + 1) > alpha:
        rank -= 1
    if rank < 1:
        raise TooFewCalibrationScans(
            f"{n} calibration scans cannot support a false-alarm rate of {alpha:g}: expected at "
            f"least {math.ceil(1 / alpha - 1 - 1e-9)}. Add normal scans or state a larger alpha"
        )
    return rank


def false_alarm_interval(
    n: int, alpha: float, confidence: float, m: int | None = None
) -> tuple[float, float]:
    """Range of the realised false-alarm rate at ``p <= alpha``.

    Parameters
    ----------
    n : int
        Calibration scans.
    alpha : float
    confidence : float
        Share of calibration sets (and of test sets) whose rate is inside the range.
    m : int, optional
        Test normals over which the rate is counted; None is the long-run rate, Beta(l, n + 1 - l).
        With a finite count the distribution is beta-binomial.

    Returns
    -------
    low, high : float
    """
    rank = allowed_rank(n, alpha)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    if m is None:
        low, high = stats.beta.ppf(tails, rank, n + 1 - rank)
    else:
        low, high = stats.betabinom.ppf(tails, m, rank, n + 1 - rank) / m
    return float(low), float(high)
