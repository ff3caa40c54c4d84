r"""The detector: a density over features, fitted on normal scans, and one score.

.. math:: s(z) = \sqrt{(z - \mu)^\top \Sigma^{-1} (z - \mu) / F}

after each feature is standardised, with the Ledoit-Wolf shrunk covariance of the normals' ``F``
features (scikit-learn). Two-sided by nature: an image that is *too likely* is as far from normal as
one that is too unlikely. About 1 on normal scans; higher = more anomalous.

Features named ``evidence_...`` are distances already, and count in one direction: below the
normals' mean they count as the mean. Where no other feature is in use and all are below it, the
score is the largest standardised one, a number below 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from anomaly.errors import CalibrationError

__all__ = ["Detector"]


@dataclass(frozen=True)
class Detector:
    """A fitted density over features, as plain arrays.

    Attributes
    ----------
    names : tuple of F str
        The features, in order.
    mean, scale : ndarray (F,) float64
        Of the normals; `scale` is the standard deviation.
    precision : ndarray (F, F) float64
        Inverse shrunk covariance of the standardised features.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, features: NDArray[np.float64], names: Sequence[str]) -> Detector:
        """Fit on normal scans (N, F) that the network was not trained on.

        Raises
        ------
        CalibrationError
            If there are fewer than 10 scans, a feature is not finite or never varies.
        """
        if len(features) < 10:
            raise CalibrationError(
                f"{len(features)} normal scans to fit the detector on: expected at least 10; put "
                "more patients into the validation split"
            )
        mean, scale = features.mean(0), features.std(0)
        # A constant column's deviation is rounding, not zero.
        varies = np.isfinite(mean) & (scale > 1e-12 * np.abs(mean))
        bad = [name for name, good in zip(names, varies, strict=True) if not good]
        if bad:
            raise CalibrationError(
                f"features {bad} are constant or not finite on the normal scans: the network or "
                "the scans are broken"
            )
        covariance = LedoitWolf(assume_centered=True).fit((features - mean) / scale)
        return cls(tuple(names), mean, scale, np.asarray(covariance.get_precision()))

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Anomaly scores (N,) of features (N, F); higher = more anomalous."""
        z = (features - self.mean) / self.scale
        one_sided = np.array([name.startswith("evidence") for name in self.names])
        best = z.max(1)
        z = np.where(one_sided, np.maximum(z, 0), z)
        distance: NDArray[np.float64] = np.sqrt(
            np.einsum("nf,fg,ng->n", z, self.precision, z) / len(self.names)
        )
        return np.where(one_sided.all() & (best < 0), best, distance)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything but the names, for saving."""
        return {"mean": self.mean, "scale": self.scale, "precision": self.precision}

    @classmethod
    def from_arrays(
        cls, names: Sequence[str], arrays: Mapping[str, NDArray[np.float64]]
    ) -> Detector:
        """Rebuild what `arrays` took apart."""
        return cls(tuple(names), arrays["mean"], arrays["scale"], arrays["precision"])
