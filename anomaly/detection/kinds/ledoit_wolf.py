r"""``ledoit_wolf``: :math:`\sqrt{z^\top \Sigma^{-1} z / F}`, the Ledoit-Wolf shrunk covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals

__all__ = ["LedoitWolf", "LedoitWolfSettings", "distances", "shrunk_precision"]


@dataclass(frozen=True)
class LedoitWolfSettings(KindSettings):
    """A distance over all features in use."""

    kind: Literal["ledoit_wolf"] = "ledoit_wolf"


def shrunk_precision(z: Array) -> Array:
    """Inverse (F, F) of the shrunk covariance of standardised features (N, F)."""
    from sklearn.covariance import LedoitWolf as Estimator  # a second to import, for fitting alone

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
        """Everything it knows."""
        return {"precision": self.precision}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> LedoitWolf:
        """Rebuild what `arrays` took apart."""
        return cls(arrays["precision"])
