"""``guarded``: a distance over the features in use, and one over those on guard.

Each is in standard deviations of its logarithm beyond the 99 % quantile of normals that it was not
fitted on. The score is that of the features in use; the guard has a say only where it is beyond its
quantile and further than they are: an image off the charts there is abnormal, however the rest of
it looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.blocks import Blocks
from anomaly.errors import ConfigError

__all__ = ["Guarded", "GuardedSettings"]

GUARD = 0.99
"""Share of normals on which a guard stays silent."""


@dataclass(frozen=True)
class GuardedSettings(KindSettings):
    """A distance, and a guard.

    Attributes
    ----------
    guard : tuple of str
        Features on guard, by name or by group.
    """

    kind: Literal["guarded"] = "guarded"
    guard: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        super().__post_init__()
        if not self.guard:
            raise ConfigError(
                "detector.candidates guard is empty with kind guarded: expected groups or names of "
                "features"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Everything that it looks at, by name or group."""
        return self.use + self.guard

    def __str__(self) -> str:
        """Name for tables."""
        return f"{super().__str__()}, guard {' + '.join(self.guard)}"


@dataclass(frozen=True)
class Guarded:
    """Fitted distances, and what is usual among normals.

    Attributes
    ----------
    blocks : Blocks
        Block 1, where there is one, is the guard.
    spread : ndarray (G,) float64
        Deviation of the normals' log distances, from densities without them.
    limit : ndarray (G,) float64
        Their quantile `GUARD`.
    """

    blocks: Blocks
    spread: Array
    limit: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: GuardedSettings) -> Guarded:
        """Fit on normal scans."""
        named = zip(normals.names, normals.groups, strict=True)
        group = np.array([not {*both}.isdisjoint(settings.guard) for both in named])
        group = group.astype(np.intp)
        normal = _log(Blocks.held_out(normals, group))
        limit = np.quantile(normal, GUARD, axis=1)
        return cls(Blocks.fit(normals.z, group), normal.std(1), limit)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        beyond = (_log(self.blocks.distances(z)) - self.limit[:, None]) / self.spread[:, None]
        # Both on one scale, on which 0 is the limit; below it the guard is silent.
        guards = np.where(beyond[1:] > 0, beyond[1:], -np.inf)
        return np.asarray(np.maximum(beyond[0], guards.max(0, initial=-np.inf)))

    def arrays(self) -> dict[str, Array]:
        """Everything it knows."""
        return {**self.blocks.arrays(), "spread": self.spread, "limit": self.limit}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Guarded:
        """Rebuild what `arrays` took apart."""
        blocks = Blocks(arrays["group"], arrays["precision"])
        return cls(blocks, arrays["spread"], arrays["limit"])


def _log(distances: Array) -> Array:
    """Logarithm; below a thousandth of a normal's usual distance, 1, nothing is more normal."""
    return np.asarray(np.log(np.maximum(distances, 1e-3)))
