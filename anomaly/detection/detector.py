r"""The detector: a density over features, fitted on normal scans, and one score.

Every feature is standardised by the normals, :math:`z = (f - \mu) / s`. Then, by kind:

- ``ledoit_wolf``: :math:`\sqrt{z^\top \Sigma^{-1} z / F}` with the Ledoit-Wolf shrunk covariance;
- ``mixture``: minus the log density of a Gaussian mixture over whitened principal components;
- ``neighbours``: distance to the k-th nearest normal among whitened principal components;
- ``conformal``: a ``ledoit_wolf`` distance a group of features, each turned into a p-value by
  normals that its density was not fitted on, combined by Fisher's :math:`-2 \sum_g \log p_g`.

- ``guarded``: a ``ledoit_wolf`` distance over the features in use and one over those on guard, each
  in standard deviations of its logarithm beyond the 99 % quantile of normals that it was not fitted
  on. The score is that of the features in use; the guard has a say only where it is beyond its
  quantile and further than they are: an image off the charts there is abnormal, however the rest of
  it looks.

All are scikit-learn's estimators, kept as plain arrays. Two-sided by nature: an image that is *too
likely* is as far from normal as one that is too unlikely. Higher = more anomalous.

Features that are one-sided are distances already, and count in one direction: below the
normals' mean they count as the mean. Where no other feature is in use and all are below it, the
``ledoit_wolf`` score is the largest standardised one, a number below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from anomaly.errors import CalibrationError, ConfigError

__all__ = ["FEWEST_NORMALS", "FOLDS", "Detector", "DetectorSettings", "fold_of"]

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["ledoit_wolf", "mixture", "neighbours", "conformal", "guarded"]

GUARD = 0.99
"""Share of normals on which a guard stays silent."""

FOLDS = 5
"""Parts of the normals, where something is judged by normals that did not take part in it."""


FEWEST_NORMALS = 10
"""Scans that a detector is fitted on, at least."""


@dataclass(frozen=True)
class DetectorSettings:
    """Which density, over which features, fitted on what.

    Attributes
    ----------
    use : tuple of str
        Features, by name or by group (`anomaly.detection.features`).
    kind : {"ledoit_wolf", "mixture", "neighbours", "conformal", "guarded"}
    guard : tuple of str
        Features on guard, likewise; of ``guarded`` alone.
    components : int
        Principal components of ``mixture`` and ``neighbours``; fewer where there are fewer
        features or scans.
    clusters : int
        Gaussians of ``mixture``.
    neighbours : int
        The k of ``neighbours``.
    """

    use: tuple[str, ...] = ("energy",)
    kind: Kind = "ledoit_wolf"
    guard: tuple[str, ...] = ()
    components: int = 100
    clusters: int = 3
    neighbours: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        if not self.use:
            raise ConfigError(
                "detector.candidates use is empty: expected groups or names of features"
            )
        if bool(self.guard) != (self.kind == "guarded"):
            raise ConfigError(
                f"detector.candidates guard is {list(self.guard)} with kind {self.kind}: expected "
                "groups or names of features with kind guarded, and none with another"
            )
        for name in ("components", "clusters", "neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"detector.candidates {name} is {getattr(self, name)}: expected 1 or more"
                )

    def __str__(self) -> str:
        """Name for tables."""
        details = {
            "mixture": f" ({self.clusters} clusters, {self.components} components)",
            "neighbours": f" (k = {self.neighbours}, {self.components} components)",
        }
        guard = f", guard {' + '.join(self.guard)}" if self.guard else ""
        return f"{self.kind}{details.get(self.kind, '')} over {' + '.join(self.use)}{guard}"

    @property
    def features(self) -> tuple[str, ...]:
        """Everything that it looks at, by name or group."""
        return self.use + self.guard


class Density(Protocol):
    """A fitted density over standardised features."""

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        ...

    def arrays(self) -> dict[str, Array]:
        """Everything it knows."""
        ...


@dataclass(frozen=True)
class Detector:
    """A fitted density over features, as plain arrays.

    Attributes
    ----------
    names : tuple of F str
        The features, in order.
    mean, scale : ndarray (F,) float64
        Of the normals; `scale` is the standard deviation.
    one_sided : ndarray (F,) bool
        Features of which only large values are unusual.
    kind : str
    density : Density
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array
    one_sided: NDArray[np.bool_]
    kind: Kind
    density: Density

    @classmethod
    def fit(
        cls,
        features: Array,
        names: Sequence[str],
        settings: DetectorSettings,
        groups: Sequence[str] | None = None,
        scans: NDArray[np.intp] | None = None,
        one_sided: NDArray[np.bool_] | None = None,
    ) -> Detector:
        """Fit on features (N, F) of normal scans.

        Parameters
        ----------
        features : ndarray (N, F)
        names : sequence of F str
        settings : DetectorSettings
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
        density = _fit_density(z, one_sided, names, settings, groups or ["all"] * len(names), scans)
        return cls(tuple(names), mean, scale, one_sided, settings.kind, density)

    def score(self, features: Array) -> Array:
        """Anomaly scores (N,) of features (N, F); higher = more anomalous."""
        z = (features - self.mean) / self.scale
        best = z.max(1)
        score = self.density.score(np.where(self.one_sided, np.maximum(z, 0), z))
        if self.kind == "ledoit_wolf" and self.one_sided.all():
            return np.where(best < 0, best, score)
        return score

    def arrays(self) -> dict[str, Array]:
        """Everything but names and kind, for saving."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "one_sided": self.one_sided.astype(np.float64),
            **{f"density.{name}": array for name, array in self.density.arrays().items()},
        }

    @classmethod
    def from_arrays(cls, names: Sequence[str], kind: Kind, arrays: Mapping[str, Array]) -> Detector:
        """Rebuild what `arrays` took apart."""
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
            _BUILD[kind](**inner),
        )


def _fit_density(
    z: Array,
    one_sided: NDArray[np.bool_],
    names: Sequence[str],
    settings: DetectorSettings,
    groups: Sequence[str],
    scans: NDArray[np.intp] | None,
) -> Density:
    rows = np.arange(len(z)) if scans is None else scans
    judged = np.where(one_sided, np.maximum(z, 0), z)
    if settings.kind == "mixture":
        return _Mixture.fit(z, settings)
    if settings.kind == "neighbours":
        return _Neighbours.fit(z, settings)
    if settings.kind == "conformal":
        group = np.unique(groups, return_inverse=True)[1]
        return _Conformal.fit(z, judged, group, rows)
    if settings.kind == "guarded":
        named = zip(names, groups, strict=True)
        guard = np.array([not {*both}.isdisjoint(settings.guard) for both in named])
        return _Guarded.fit(z, judged, guard.astype(np.intp), rows)
    return _Mahalanobis.fit(z)


def fold_of(scans: NDArray[np.intp]) -> NDArray[np.intp]:
    """Fold 0 ... FOLDS - 1 of every row; rows of one scan share it."""
    _, position = np.unique(scans, return_inverse=True)
    return np.asarray(position % FOLDS, dtype=np.intp)


@dataclass(frozen=True)
class _Mahalanobis:
    precision: Array  # (F, F), inverse of the shrunk covariance

    @classmethod
    def fit(cls, z: Array) -> _Mahalanobis:
        return cls(np.asarray(LedoitWolf(assume_centered=True).fit(z).get_precision()))

    def score(self, z: Array) -> Array:
        squared = np.einsum("nf,nf->n", z @ self.precision, z)
        return np.asarray(np.sqrt(squared / z.shape[1]))

    def arrays(self) -> dict[str, Array]:
        return {"precision": self.precision}


def _whitening(z: Array, components: int) -> Array:
    """Matrix (F, P): ``z @ matrix`` are principal components of unit variance."""
    pca = PCA(min(components, z.shape[1], len(z) - 1), svd_solver="full").fit(z)
    # A feature that follows from others leaves a component of rounding errors.
    spread = pca.explained_variance_
    real = spread > 1e-10 * spread[0]
    return np.asarray(pca.components_[real].T / np.sqrt(spread[real]))


@dataclass(frozen=True)
class _Mixture:
    whitening: Array  # (F, P)
    weights: Array  # (K,)
    means: Array  # (K, P)
    roots: Array  # (K, P, P), Cholesky factors of the precisions

    @classmethod
    def fit(cls, z: Array, settings: DetectorSettings) -> _Mixture:
        whitening = _whitening(z, settings.components)
        # Whitened components have variance 1; a twentieth of it keeps a small cluster's
        # covariance from collapsing onto its few scans.
        mixture = GaussianMixture(settings.clusters, reg_covar=0.05, random_state=0)
        mixture.fit(z @ whitening)
        return cls(whitening, mixture.weights_, mixture.means_, mixture.precisions_cholesky_)

    def score(self, z: Array) -> Array:
        white = z @ self.whitening
        logs = []
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            away = (white - mean) @ root
            log_root = np.log(np.diag(root)).sum()
            logs.append(np.log(weight) + log_root - 0.5 * np.square(away).sum(1))
        constant = 0.5 * white.shape[1] * np.log(2 * np.pi)
        return np.asarray(constant - logsumexp(logs, axis=0))

    def arrays(self) -> dict[str, Array]:
        return {
            "whitening": self.whitening,
            "weights": self.weights,
            "means": self.means,
            "roots": self.roots,
        }


@dataclass(frozen=True)
class _Neighbours:
    whitening: Array  # (F, P)
    points: Array  # (N, P)
    k: Array  # ()

    @classmethod
    def fit(cls, z: Array, settings: DetectorSettings) -> _Neighbours:
        whitening = _whitening(z, settings.components)
        return cls(whitening, z @ whitening, np.array(min(settings.neighbours, len(z)), float))

    def score(self, z: Array) -> Array:
        distances = cdist(z @ self.whitening, self.points)
        k = int(self.k) - 1
        return np.asarray(np.partition(distances, k, axis=1)[:, k])

    def arrays(self) -> dict[str, Array]:
        return {"whitening": self.whitening, "points": self.points, "k": self.k}


@dataclass(frozen=True)
class _Blocks:
    """A `_Mahalanobis` distance for every group of features."""

    group: Array  # (F,), number of the group of every feature
    precision: Array  # (F, F), block by block a group's

    @classmethod
    def fit(cls, z: Array, group: NDArray[np.intp]) -> _Blocks:
        precision = np.zeros((z.shape[1],) * 2)
        for index in range(group.max() + 1):
            columns = np.flatnonzero(group == index)
            block = _Mahalanobis.fit(z[:, columns]).precision
            precision[np.ix_(columns, columns)] = block
        return cls(group.astype(np.float64), precision)

    @staticmethod
    def held_out(
        z: Array, judged: Array, group: NDArray[np.intp], scans: NDArray[np.intp]
    ) -> Array:
        """Distances (G, N) of normals, each from densities fitted without its fold.

        `judged` is `z` as `Detector.score` sees it, one-sided where features are.
        """
        fold = fold_of(scans)
        distances = np.empty((group.max() + 1, len(z)))
        for out in (fold == f for f in range(FOLDS)):
            distances[:, out] = _Blocks.fit(z[~out], group).distances(judged[out])
        return distances

    def distances(self, z: Array) -> Array:
        """Distances (G, N) of standardised features (N, F)."""
        rows = []
        for index in range(int(self.group.max()) + 1):
            columns = np.flatnonzero(self.group == index)
            block = self.precision[np.ix_(columns, columns)]
            rows.append(_Mahalanobis(block).score(z[:, columns]))
        return np.stack(rows)

    def arrays(self) -> dict[str, Array]:
        return {"group": self.group, "precision": self.precision}


@dataclass(frozen=True)
class _Conformal:
    blocks: _Blocks
    normal: Array  # (G, N), rising: distances of normals from densities fitted without them

    @classmethod
    def fit(
        cls, z: Array, judged: Array, group: NDArray[np.intp], scans: NDArray[np.intp]
    ) -> _Conformal:
        normal = np.sort(_Blocks.held_out(z, judged, group, scans), axis=1)
        return cls(_Blocks.fit(z, group), normal)

    @classmethod
    def from_arrays(cls, group: Array, precision: Array, normal: Array) -> _Conformal:
        return cls(_Blocks(group, precision), normal)

    def score(self, z: Array) -> Array:
        total = np.zeros(len(z))
        for normal, distance in zip(self.normal, self.blocks.distances(z), strict=True):
            at_least = len(normal) - np.searchsorted(normal, distance, side="left")
            total -= 2 * np.log((1 + at_least) / (1 + len(normal)))
        return total

    def arrays(self) -> dict[str, Array]:
        return {**self.blocks.arrays(), "normal": self.normal}


@dataclass(frozen=True)
class _Guarded:
    blocks: _Blocks  # group 1, where there is one, is the guard
    spread: Array  # (G,), deviation of the normals' log distances, from densities without them
    limit: Array  # (G,), their quantile `GUARD`

    @classmethod
    def fit(
        cls, z: Array, judged: Array, group: NDArray[np.intp], scans: NDArray[np.intp]
    ) -> _Guarded:
        normal = _log(_Blocks.held_out(z, judged, group, scans))
        return cls(_Blocks.fit(z, group), normal.std(1), np.quantile(normal, GUARD, axis=1))

    @classmethod
    def from_arrays(cls, group: Array, precision: Array, spread: Array, limit: Array) -> _Guarded:
        return cls(_Blocks(group, precision), spread, limit)

    def score(self, z: Array) -> Array:
        beyond = (_log(self.blocks.distances(z)) - self.limit[:, None]) / self.spread[:, None]
        # Both on one scale, on which 0 is the limit; below it the guard is silent.
        guards = np.where(beyond[1:] > 0, beyond[1:], -np.inf)
        return np.asarray(np.maximum(beyond[0], guards.max(0, initial=-np.inf)))

    def arrays(self) -> dict[str, Array]:
        return {**self.blocks.arrays(), "spread": self.spread, "limit": self.limit}


def _log(distances: Array) -> Array:
    """Logarithm; below a thousandth of a normal's usual distance, 1, nothing is more normal."""
    return np.asarray(np.log(np.maximum(distances, 1e-3)))


_BUILD: dict[Kind, Callable[..., Density]] = {
    "ledoit_wolf": _Mahalanobis,
    "mixture": _Mixture,
    "neighbours": _Neighbours,
    "conformal": _Conformal.from_arrays,
    "guarded": _Guarded.from_arrays,
}
