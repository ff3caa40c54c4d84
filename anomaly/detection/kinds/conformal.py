r"""``conformal``: a distance a group of features, each a p-value, combined by Fisher.

Each distance is turned into a p-value by normals that its density was not fitted on, and
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
    """A distance a group of features, combined by p-values."""

    kind: Literal["conformal"] = "conformal"


@dataclass(frozen=True)
class Conformal:
    """Fitted distances, and those of normals.

    Attributes
    ----------
    blocks : Blocks
        One a group.
    normal : ndarray (G, N) float64
        Rising: distances of normals from densities fitted without them.
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
        """Everything it knows."""
        return {**self.blocks.arrays(), "normal": self.normal}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Conformal:
        """Rebuild what `arrays` took apart."""
        return cls(Blocks(arrays["group"], arrays["precision"]), arrays["normal"])
