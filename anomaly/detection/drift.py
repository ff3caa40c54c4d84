r"""Drift: typical scans of a run differ from the normal scans of the calibration.

P-values are valid for scans acquired like the calibration scans. Another device, another exposure
or another age of patients changes *all* scans a little, a finding changes some scans a lot. The
median distinguishes the two: a feature has drifted in a group of scans if its median there is
outside the middle half of its normal values,

.. math:: \mathrm{median}\{f_i\} \notin [q_{1/4}, q_{3/4}],

which findings on a few of the scans do not cause. Flagged scans are excluded, so that the others
represent the acquisition. For :math:`m` normal scans with equal acquisition this happens with
probability :math:`2 P(\mathrm{Bin}(m, 1/4) \ge m/2)` per feature if the quartiles are known:
0.02 % for the smallest group, `FEWEST`, and rapidly less for larger ones. The quartiles are
estimated from the calibration scans; with fewer than `FEWEST_NORMAL` they are too uncertain, and
drift is not reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.calibration import Spread

__all__ = ["FEWEST", "FEWEST_NORMAL", "Drift", "find_drift"]

FEWEST = 50
"""Smallest group of scans for which drift is reported."""

FEWEST_NORMAL = 100
"""Smallest number of calibration scans with which drift is reported."""


@dataclass(frozen=True)
class Drift:
    """A feature whose typical value differs from that of normal scans.

    Attributes
    ----------
    feature : str
    median : float
        Median in the group.
    low, high : float
        Quartiles of normal scans, low < high.
    """

    feature: str
    median: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """Distance of the median from the middle half, in widths of the middle half."""
        return max(self.low - self.median, self.median - self.high) / (self.high - self.low)


def find_drift(
    scans: Sequence[Mapping[str, float]], normal: Mapping[str, Spread]
) -> tuple[Drift, ...]:
    """Find the features that have drifted, largest distance first.

    Parameters
    ----------
    scans : sequence of mapping of str to float
        Features of the scans of a group that are not flagged.
    normal : mapping of str to Spread
        The same features of at least `FEWEST_NORMAL` normal scans. Features that do not vary in
        the middle half are ignored.

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
