r"""``ledoit_wolf``: :math:`\sqrt{z^\top \Sigma^{-1} z / F}` with Ledoit-Wolf shrunk covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals

__all__ = ["LedoitWolf", "LedoitWolfSettings", "distances", "shrunk_precision"]


@dataclass(frozen=True)
class LedoitWolfSettings(KindSettings):
    """A distance over all features."""

    kind: Literal["ledoit_wolf"] = "ledoit_wolf"


def shrunk_precision(z: Array) -> Array:
    """Inverse (F, F) of the shrunk covariance of standardised features (N, F)."""
    # Takes a second to import; needed only for fitting.
    from sklearn.covariance import LedoitWolf as Estimator

    return np.asarray(Estimator(assume_centered=True).fit(z).get_precision())


def distances(z: Array, precision: Array) -> Array:
    """Root mean square distances (N,) of standardised features (N, F)."""
    squared = np.einsum("nf,nf->n", z @ precision, z)
    return np.asarray(np.sqrt(squared / z.shape[1]))


@dataclass(frozen=True)
class LedoitWolf:
    """A fitted distance.

    Attributes
    ----------
    precision : ndarray (F, F) float64
    """

    precision: Array

    counts_below: ClassVar[bool] = True

    @classmethod
    def fit(cls, normals: Normals, settings: LedoitWolfSettings) -> LedoitWolf:
        """Fit on normal scans."""
        return cls(shrunk_precision(normals.z))

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        return distances(z, self.precision)

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {"precision": self.precision}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> LedoitWolf:
        """Restore a density from its `arrays`."""
        return cls(arrays["precision"])
