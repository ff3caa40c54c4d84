r"""Drift: scans of a run that are typically unlike the normal scans of the calibration.

A p-value holds for scans made as the calibration scans were. Another device, another exposure or
another age of patients moves *all* scans a little, a finding moves some scans a lot. So the middle
tells the two apart: a feature has drifted in a group of scans if its median there lies outside the
middle half of its normal values,

.. math:: \mathrm{median}\{f_i\} \notin [q_{1/4}, q_{3/4}],

which findings on few of the scans do not cause. Flagged scans are left out, so that the others
speak for how scans are made. Of :math:`m` normal scans that are made alike it happens with
probability :math:`2 P(\mathrm{Bin}(m, 1/4) \ge m/2)` a feature, were the quartiles known: 0.02 %
for the fewest scans that are judged, `FEWEST`, and rapidly less for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.calibration import Calibration

__all__ = ["FEWEST", "Drift", "find_drift"]

FEWEST = 50
"""Scans of a group below which nothing is said of it."""


@dataclass(frozen=True)
class Drift:
    """A feature whose typical value is another than that of normal scans.

    Attributes
    ----------
    feature : str
    median : float
        In the group.
    low, high : float
        Quartiles of normal scans.
    """

    feature: str
    median: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """How far outside the middle half the median lies, in widths of it."""
        outside = max(self.low - self.median, self.median - self.high)
        return outside / (self.high - self.low) if self.high > self.low else np.inf


def find_drift(
    scans: Sequence[Mapping[str, float]], normal: Mapping[str, Calibration]
) -> tuple[Drift, ...]:
    """Find the features that have drifted, the furthest first.

    Parameters
    ----------
    scans : sequence of mapping of str to float
        Features of the scans of a group that are not flagged.
    normal : mapping of str to Calibration
        The same features of normal scans.

    Returns
    -------
    tuple of Drift
        Empty for fewer than `FEWEST` scans.
    """
    if len(scans) < FEWEST:
        return ()
    found = []
    for name, calibration in normal.items():
        low, high = np.quantile(calibration.scores, (0.25, 0.75))
        values: NDArray[np.float64] = np.array([scan[name] for scan in scans])
        median = float(np.median(values))
        if not low <= median <= high:
            found.append(Drift(name, median, float(low), float(high)))
    return tuple(sorted(found, key=lambda drift: -drift.distance))
