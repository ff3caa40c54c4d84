"""The score axis of a run: positions of scores in the histogram of normal scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly.reporting.html.cases import ReportData
from anomaly.reporting.html.rows import Histogram
from anomaly.reporting.plots.figures import histogram_path

__all__ = ["ScoreAxis"]

_WIDTH, _HEIGHT = 420, 64


@dataclass(frozen=True)
class ScoreAxis:
    """The horizontal axis of the histogram, the same for all scans of a run."""

    low: float
    high: float

    @classmethod
    def around(cls, data: ReportData) -> ScoreAxis:
        """Return the axis that covers the calibration scores and the threshold, with a margin."""
        low = min(float(data.calibration_scores.min()), data.threshold)
        high = max(float(data.calibration_scores.max()), data.threshold)
        span = (high - low) or 1.0
        return cls(low - 0.1 * span, high + 0.4 * span)

    def holds(self, score: float) -> bool:
        """Whether a score is within the axis."""
        return self.low <= score <= self.high

    def place(self, score: float) -> float:
        """Return the position of a score in the drawing, clipped to its edges."""
        share = (score - self.low) / (self.high - self.low)
        return round(_WIDTH * min(1.0, max(0.0, share)), 1)

    def histogram(self, data: ReportData) -> Histogram:
        """Return the drawing of the calibration scores on this axis."""
        return Histogram(
            bars=histogram_path(data.calibration_scores, self.low, self.high, _WIDTH, _HEIGHT),
            width=_WIDTH,
            threshold_x=self.place(data.threshold),
            ticks=self._ticks(),
        )

    def _ticks(self) -> tuple[tuple[float, str], ...]:
        """Positions and labels of about four round scores."""
        span = self.high - self.low
        step = 10.0 ** np.floor(np.log10(span / 3))
        step *= next(m for m in (5, 2, 1) if m * step <= span / 3)
        first = np.ceil(self.low / step) * step
        scores = np.arange(first, self.high, step) + 0.0  # + 0.0: avoid -0
        return tuple((self.place(s), f"{s:g}") for s in np.round(scores, 12))
