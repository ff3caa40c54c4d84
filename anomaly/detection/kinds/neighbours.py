"""``neighbours``: distance to the k-th nearest normal among whitened principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.spatial.distance import cdist

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.components import whitening

__all__ = ["Neighbours", "NeighboursSettings"]


@dataclass(frozen=True)
class NeighboursSettings(KindSettings):
    """The k-th nearest normal.

    Attributes
    ----------
    components : int
        Principal components; fewer if there are fewer features or scans.
    neighbours : int
        The k.
    """

    kind: Literal["neighbours"] = "neighbours"
    components: int = 100
    neighbours: int = 5

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        super().__post_init__()
        self.need_positive("components", "neighbours")

    @property
    def details(self) -> str:
        """Parameters shown in tables beside kind and features."""
        return f" (k = {self.neighbours}, {self.components} components)"


@dataclass(frozen=True)
class Neighbours:
    """Stored normals, for distances to them.

    Attributes
    ----------
    whitening : ndarray (F, P) float64
    points : ndarray (N, P) float64
    k : ndarray () float64
    """

    whitening: Array
    points: Array
    k: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: NeighboursSettings) -> Neighbours:
        """Fit on normal scans."""
        matrix = whitening(normals.z, settings.components)
        k = np.array(min(settings.neighbours, len(normals.z)), float)
        return cls(matrix, normals.z @ matrix, k)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        distances = cdist(z @ self.whitening, self.points)
        k = int(self.k) - 1
        return np.asarray(np.partition(distances, k, axis=1)[:, k])

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {"whitening": self.whitening, "points": self.points, "k": self.k}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Neighbours:
        """Restore a density from its `arrays`."""
        return cls(**arrays)
