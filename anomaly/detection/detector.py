r"""A detector over features: a density fitted on normal scans, which gives one score.

Every feature is standardised by the normals, :math:`z = (f - \mu) / s`; the density over ``z`` is
one of the kinds in `anomaly.detection.kinds`.

One-sided features are distances: values below the normals' mean are replaced by the mean. If all
features are one-sided and below their means, a kind may use the largest standardised value, a
number below 0, as the score (`Density.counts_below`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.kinds import Density, ExplainedDensity, KindSettings, Normals, kind_of
from anomaly.detection.kinds.base import Array
from anomaly.errors import CalibrationError

__all__ = ["FEWEST_NORMALS", "FeatureDetector"]

FEWEST_NORMALS = 10
"""Smallest number of scans to fit a detector on."""


@dataclass(frozen=True)
class FeatureDetector:
    """A fitted density over features, as plain arrays.

    Attributes
    ----------
    names : tuple of F str
        The features, in order.
    mean, scale : ndarray (F,) float64
        Mean and standard deviation of the normals.
    one_sided : ndarray (F,) bool
        Features of which only large values are unusual.
    kind : str
    density : Density
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array
    one_sided: NDArray[np.bool_]
    kind: str
    density: Density

    @classmethod
    def fit(
        cls,
        features: Array,
        names: Sequence[str],
        settings: KindSettings,
        groups: Sequence[str] | None = None,
        scans: NDArray[np.intp] | None = None,
        one_sided: NDArray[np.bool_] | None = None,
    ) -> FeatureDetector:
        """Fit on features (N, F) of normal scans.

        Parameters
        ----------
        features : ndarray (N, F)
        names : sequence of F str
        settings : KindSettings
        groups : sequence of F str, optional
            Group of each feature; all in one by default.
        scans : ndarray (N,) int, optional
            Rows with the same number are of the same scan and stay in the same fold.
        one_sided : ndarray (F,) bool, optional
            Features of which only large values are unusual; none by default.

        Raises
        ------
        CalibrationError
            If there are fewer than `FEWEST_NORMALS` scans, a feature is not finite or never varies.
        """
        count = len(features) if scans is None else len(np.unique(scans))
        if count < FEWEST_NORMALS:
            raise CalibrationError(
                f"{count} normal scans to fit the detector on: expected at least "
                f"{FEWEST_NORMALS}; put more patients into the validation split"
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
        z = (features - mean) / scale
        if one_sided is None:
            one_sided = np.zeros(len(names), dtype=np.bool_)
        normals = Normals(
            z,
            one_sided,
            names,
            groups or ["all"] * len(names),
            np.arange(len(z)) if scans is None else scans,
        )
        density = kind_of(settings.kind).density.fit(normals, settings)
        return cls(tuple(names), mean, scale, one_sided, settings.kind, density)

    def score(self, features: Array) -> Array:
        """Anomaly scores (N,) of features (N, F); higher = more anomalous."""
        z = (features - self.mean) / self.scale
        best = z.max(1)
        score = self.density.score(self.judged(features))
        if self.density.counts_below and self.one_sided.all():
            return np.where(best < 0, best, score)
        return score

    def parts(self, features: Array) -> dict[str, Array]:
        """Parts (N,) of the scores of features (N, F), by name; empty if its kind has none."""
        if not isinstance(self.density, ExplainedDensity):
            return {}
        return self.density.parts(self.judged(features))

    def decisive(self, features: Array) -> list[str]:
        """Name of the part that gives the score, of each of N scans; "" if its kind has none."""
        if not isinstance(self.density, ExplainedDensity):
            return [""] * len(features)
        return self.density.decisive(self.judged(features))

    def shares(self, features: Array) -> Array | None:
        """Shares (N, F) of the features in the part ``whole``; None if its kind has no parts."""
        if not isinstance(self.density, ExplainedDensity):
            return None
        return self.density.shares(self.judged(features))

    def judged(self, features: Array) -> Array:
        """Standardised features (N, F), with one-sided ones clipped at 0."""
        z = (features - self.mean) / self.scale
        return np.where(self.one_sided, np.maximum(z, 0), z)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything but names and kind, for saving."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "one_sided": self.one_sided.astype(np.float64),
            **{f"density.{name}": array for name, array in self.density.arrays().items()},
        }

    @classmethod
    def from_arrays(
        cls, names: Sequence[str], kind: str, arrays: Mapping[str, NDArray[Any]]
    ) -> FeatureDetector:
        """Restore a detector from its `arrays`."""
        inner = {
            name.removeprefix("density."): array
            for name, array in arrays.items()
            if name.startswith("density.")
        }
        return cls(
            tuple(names),
            arrays["mean"],
            arrays["scale"],
            arrays["one_sided"] > 0.5,
            kind,
            kind_of(kind).density.from_arrays(inner),
        )
