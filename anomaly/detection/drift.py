r"""Drift: scans of a run that are typically unlike the normal scans of the calibration.

A p-value holds for scans made as the calibration scans were. Another device, another exposure or
another age of patients moves *all* scans a little, a finding moves some scans a lot. So the middle
tells the two apart: a feature has drifted in a group of scans if its median there lies outside the
middle half of its normal values,

.. math:: \mathrm{median}\{f_i\} \notin [q_{1/4}, q_{3/4}],

which findings on few of the scans do not cause. Flagged scans are left out, so that the others
speak for how scans are made. Of :math:`m` normal scans that are made alike it happens with
probability :math:`2 P(\mathrm{Bin}(m, 1/4) \ge m/2)` a feature, were the quartiles known: 0.02 %
for the fewest scans that are judged, `FEWEST`, and rapidly less for more. The quartiles are those
of the calibration scans; of fewer than `FEWEST_NORMAL` they are too uncertain, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.calibration import Spread

__all__ = ["FEWEST", "FEWEST_NORMAL", "Drift", "find_drift"]

FEWEST = 50
"""Scans of a group below which nothing is said of it."""

FEWEST_NORMAL = 100
"""Calibration scans below which nothing is said at all."""


@dataclass(frozen=True)
class Drift:
    """A feature whose typical value is another than that of normal scans.

    Attributes
    ----------
    feature : str
    median : float
        In the group.
    low, high : float
        Quartiles of normal scans, low < high.
    """

    feature: str
    median: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """How far outside the middle half the median lies, in widths of it."""
        return max(self.low - self.median, self.median - self.high) / (self.high - self.low)


def find_drift(
    scans: Sequence[Mapping[str, float]], normal: Mapping[str, Spread]
) -> tuple[Drift, ...]:
    """Find the features that have drifted, the furthest first.

    Parameters
    ----------
    scans : sequence of mapping of str to float
        Features of the scans of a group that are not flagged.
    normal : mapping of str to Spread
        The same features of normal scans, at least `FEWEST_NORMAL`. Those that do not vary in the
        middle half say nothing.

    Returns
    -------
    tuple of Drift
        Empty for fewer than `FEWEST` scans with a finite value of a feature.
    """
    drifts = []
    for name, spread in normal.items():
        low, high = spread.percentile(25), spread.percentile(75)
        values: NDArray[np.float64] = np.array([scan[name] for scan in scans if name in scan])
        values = values[np.isfinite(values)]
        if len(values) < FEWEST or not low < high:
            continue
        median = float(np.median(values))
        if not low <= median <= high:
            drifts.append(Drift(name, median, low, high))
    return tuple(sorted(drifts, key=lambda drift: -drift.distance))
