"""Interface of a kind: settings, and a density fitted on standardised features of normals.

::

    KindSettings   features and parameters; one class per kind
    Density        fit(normals, settings), score(z), arrays(), from_arrays(arrays)

To add a kind, write both classes and register them (`anomaly.detection.kinds.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ConfigError

__all__ = [
    "FOLDS",
    "AdaptableDensity",
    "Array",
    "Arrays",
    "Density",
    "ExplainedDensity",
    "KindSettings",
    "Normals",
    "fold_of",
]

Array: TypeAlias = NDArray[np.float64]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]

FOLDS = 5
"""Folds of the normals, for statistics of normals that were not used in the fit."""


def fold_of(scans: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the fold, 0 ... FOLDS - 1, of every row; rows of the same scan share it."""
    _, position = np.unique(scans, return_inverse=True)
    return np.asarray(position % FOLDS, dtype=np.intp)


@dataclass(frozen=True)
class Normals:
    """Standardised features of normal scans, to fit a density on.

    Attributes
    ----------
    z : ndarray (N, F) float64
    one_sided : ndarray (F,) bool
        Features of which only large values are unusual.
    names, groups : tuple of F str
        Name and group of every feature.
    scans : ndarray (N,) int
        Rows with the same number are of the same scan and stay in the same fold.
    """

    z: Array
    one_sided: NDArray[np.bool_]
    names: Sequence[str]
    groups: Sequence[str]
    scans: NDArray[np.intp]

    @property
    def judged(self) -> Array:
        """Features as used in scores, with one-sided ones clipped at 0: (N, F) float64."""
        return np.where(self.one_sided, np.maximum(self.z, 0), self.z)


@dataclass(frozen=True)
class KindSettings:
    """Features of a detector; each kind adds its own settings.

    Attributes
    ----------
    use : tuple of str
        Features, by name or by group (`anomaly.detection.features`).
    kind : str
    """

    use: tuple[str, ...] = ("energy",)
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuse settings without features."""
        if not self.use:
            raise ConfigError(
                "detector.candidates use is empty: expected groups or names of features"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """All features used, by name or group."""
        return self.use

    @property
    def guard(self) -> tuple[str, ...]:
        """Features that contribute only if they are extreme, by name or group."""
        return ()

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Features by role; a feature may have one role only."""
        return {"use": self.use, "guard": self.guard}

    @property
    def details(self) -> str:
        """Parameters shown in tables beside kind and features."""
        return ""

    def __str__(self) -> str:
        """Return the name for tables."""
        return f"{self.kind}{self.details} over {' + '.join(self.use)}"

    def need_positive(self, *names: str) -> None:
        """Check that settings are at least 1.

        Raises
        ------
        ConfigError
            If one is below 1.
        """
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"detector.candidates {name} is {getattr(self, name)}: expected 1 or more"
                )


class Density(Protocol):
    """A fitted density over standardised features."""

    counts_below: ClassVar[bool]
    """If all features are one-sided and below their means, the largest of them is the score."""

    @classmethod
    def fit(cls, normals: Normals, settings: Any) -> Self:
        """Fit on normal scans."""
        ...

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the complete state, with any dtypes."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Restore a density from its `arrays`."""
        ...


@runtime_checkable
class ExplainedDensity(Density, Protocol):
    """A density whose score has parts, and one part of which is a sum over features."""

    def parts(self, z: Array) -> dict[str, Array]:
        """Parts (N,) of the score by name; ``whole`` is explained by `shares`."""
        ...

    def decisive(self, z: Array) -> list[str]:
        """Name of the part that gives the score, of each of N images."""
        ...

    def shares(self, z: Array) -> Array:
        """Share of every feature (N, F) in the part ``whole``; they sum to 1."""
        ...


@runtime_checkable
class AdaptableDensity(Density, Protocol):
    """A density that can be adapted to the normals of another site."""

    def adapted(self, z: Array, scans: int) -> Self:
        """Return the density with the covariance of features (M, F) of some scans mixed in."""
        ...

    def rest(self, z: Array) -> Array:
        """Statistics (P, N) of its P parts, less what they are given; 0 on average of normals."""
        ...

    def recentred(self, means: Array) -> Self:
        """Return the density with laws moved by the means (P,) of a site's `rest`."""
        ...
