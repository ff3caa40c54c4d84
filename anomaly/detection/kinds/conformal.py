r"""``conformal``: p-values of a distance per feature group, combined by Fisher's method.

Each distance is converted to a p-value using normals that its density was not fitted on;
:math:`-2 \sum_g \log p_g` is the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.blocks import Blocks

__all__ = ["Conformal", "ConformalSettings"]


@dataclass(frozen=True)
class ConformalSettings(KindSettings):
    """One distance per feature group, combined by p-values."""

    kind: Literal["conformal"] = "conformal"


@dataclass(frozen=True)
class Conformal:
    """Fitted distances, and those of normals.

    Attributes
    ----------
    blocks : Blocks
        One block per group.
    normal : ndarray (G, N) float64
        Distances of normals from densities fitted without them, ascending.
    """

    blocks: Blocks
    normal: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: ConformalSettings) -> Conformal:
        """Fit on normal scans."""
        group = np.unique(normals.groups, return_inverse=True)[1]
        normal = np.sort(Blocks.held_out(normals, group), axis=1)
        return cls(Blocks.fit(normals.z, group), normal)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        total = np.zeros(len(z))
        for normal, distance in zip(self.normal, self.blocks.distances(z), strict=True):
            at_least = len(normal) - np.searchsorted(normal, distance, side="left")
            total -= 2 * np.log((1 + at_least) / (1 + len(normal)))
        return total

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {**self.blocks.arrays(), "normal": self.normal}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Conformal:
        """Restore a density from its `arrays`."""
        return cls(Blocks(arrays["group"], arrays["precision"]), arrays["normal"])
