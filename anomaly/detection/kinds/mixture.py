"""``mixture``: negative log density of a Gaussian mixture over whitened principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.special import logsumexp

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.components import whitening

__all__ = ["Mixture", "MixtureSettings"]


@dataclass(frozen=True)
class MixtureSettings(KindSettings):
    """A Gaussian mixture.

    Attributes
    ----------
    components : int
        Principal components; fewer if there are fewer features or scans.
    clusters : int
        Number of Gaussians.
    """

    kind: Literal["mixture"] = "mixture"
    components: int = 100
    clusters: int = 3

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        super().__post_init__()
        self.need_positive("components", "clusters")

    @property
    def details(self) -> str:
        """Parameters shown in tables beside kind and features."""
        return f" ({self.clusters} clusters, {self.components} components)"


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture.

    Attributes
    ----------
    whitening : ndarray (F, P) float64
    weights : ndarray (K,) float64
    means : ndarray (K, P) float64
    roots : ndarray (K, P, P) float64
        Cholesky factors of the precisions.
    """

    whitening: Array
    weights: Array
    means: Array
    roots: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: MixtureSettings) -> Mixture:
        """Fit on normal scans."""
        # Takes a second to import; needed only for fitting.
        from sklearn.mixture import GaussianMixture

        matrix = whitening(normals.z, settings.components)
        # Whitened components have variance 1; adding a twentieth of it keeps a small cluster's
        # covariance from collapsing onto its few scans.
        mixture = GaussianMixture(settings.clusters, reg_covar=0.05, random_state=0)
        mixture.fit(normals.z @ matrix)
        return cls(matrix, mixture.weights_, mixture.means_, mixture.precisions_cholesky_)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        white = z @ self.whitening
        logs = []
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            standardised = (white - mean) @ root
            log_root = np.log(np.diag(root)).sum()
            logs.append(np.log(weight) + log_root - 0.5 * np.square(standardised).sum(1))
        constant = 0.5 * white.shape[1] * np.log(2 * np.pi)
        return np.asarray(constant - logsumexp(logs, axis=0))

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {
            "whitening": self.whitening,
            "weights": self.weights,
            "means": self.means,
            "roots": self.roots,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Mixture:
        """Restore a density from its `arrays`."""
        return cls(**arrays)
