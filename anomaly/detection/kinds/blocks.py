"""A ``ledoit_wolf`` distance for every block of features, used by two kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.kinds.base import FOLDS, Array, Normals, fold_of
from anomaly.detection.kinds.ledoit_wolf import shrunk_precision

__all__ = ["Blocks", "log_distances"]


@dataclass(frozen=True)
class Blocks:
    """Distances by block.

    Attributes
    ----------
    group : ndarray (F,) float64
        Number of every feature's block, from 0.
    precision : ndarray (F, F) float64
        Block-diagonal: the precision of each block's features.
    """

    group: Array
    precision: Array

    @classmethod
    def fit(cls, z: Array, group: NDArray[np.intp]) -> Blocks:
        """Fit a distance for each block."""
        precision = np.zeros((z.shape[1],) * 2)
        for index in range(group.max() + 1):
            columns = np.flatnonzero(group == index)
            precision[np.ix_(columns, columns)] = shrunk_precision(z[:, columns])
        return cls(group.astype(np.float64), precision)

    @staticmethod
    def held_out(normals: Normals, group: NDArray[np.intp]) -> Array:
        """Distances (G, N) of normals, each from densities fitted without its fold."""
        fold = fold_of(normals.scans)
        result = np.empty((group.max() + 1, len(normals.z)))
        for number in range(FOLDS):
            out = fold == number
            blocks = Blocks.fit(normals.z[~out], group)
            result[:, out] = blocks.distances(normals.judged[out])
        return result

    def distances(self, z: Array) -> Array:
        """Root mean square distances (G, N) of standardised features (N, F)."""
        terms = self.terms(z)
        groups = [self.group == index for index in range(int(self.group.max()) + 1)]
        return np.sqrt([terms[:, own].sum(1) / own.sum() for own in groups])

    def terms(self, z: Array) -> Array:
        """Terms (N, F) of the squared distances: those of a block add up to its own."""
        terms: Array = z * (z @ self.precision)
        return terms

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {"group": self.group, "precision": self.precision}


def log_distances(distances: Array) -> Array:
    """Logarithm, with distances clipped at a thousandth of the typical distance of a normal, 1."""
    return np.asarray(np.log(np.maximum(distances, 1e-3)))
