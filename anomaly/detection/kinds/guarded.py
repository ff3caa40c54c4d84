"""``guarded``: a distance over the main features, and one over guard features.

Each is measured in standard deviations of its logarithm beyond the 99 % quantile of normals that it
was not fitted on. The score is that of the main features, unless the guard is beyond its quantile
and larger: an image that is extreme in the guard features is abnormal, whatever the others show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.blocks import Blocks, log_distances
from anomaly.errors import ConfigError

__all__ = ["Guarded", "GuardedSettings"]

GUARD = 0.99
"""Share of normals for which the guard does not contribute."""


@dataclass(frozen=True)
class GuardedSettings(KindSettings):
    """A distance with a guard.

    Attributes
    ----------
    guard : tuple of str
        Guard features, by name or by group.
    """

    kind: Literal["guarded"] = "guarded"
    guard: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings without guard features."""
        super().__post_init__()
        if not self.guard:
            raise ConfigError(
                "detector.candidates guard is empty with kind guarded: expected groups or names of "
                "features"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """All features used, by name or group."""
        return self.use + self.guard

    def __str__(self) -> str:
        """Return the name for tables."""
        return f"{super().__str__()}, guard {' + '.join(self.guard)}"


@dataclass(frozen=True)
class Guarded:
    """Fitted distances, and statistics of normals.

    Attributes
    ----------
    blocks : Blocks
        Block 1, if there is one, is the guard.
    spread : ndarray (G,) float64
        Standard deviation of the normals' log distances, from densities fitted without them.
    limit : ndarray (G,) float64
        Quantile `GUARD` of these log distances.
    """

    blocks: Blocks
    spread: Array
    limit: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: GuardedSettings) -> Guarded:
        """Fit on normal scans."""
        columns = zip(normals.names, normals.groups, strict=True)
        in_guard = [name in settings.guard or group in settings.guard for name, group in columns]
        block = np.array(in_guard).astype(np.intp)
        normal = log_distances(Blocks.held_out(normals, block))
        limit = np.quantile(normal, GUARD, axis=1)
        return cls(Blocks.fit(normals.z, block), normal.std(1), limit)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        beyond = (log_distances(self.blocks.distances(z)) - self.limit[:, None]) / self.spread[
            :, None
        ]
        # Both have the same scale, with the limit at 0; below it the guard does not contribute.
        guards = np.where(beyond[1:] > 0, beyond[1:], -np.inf)
        return np.asarray(np.maximum(beyond[0], guards.max(0, initial=-np.inf)))

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {**self.blocks.arrays(), "spread": self.spread, "limit": self.limit}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Guarded:
        """Restore a density from its `arrays`."""
        blocks = Blocks(arrays["group"], arrays["precision"])
        return cls(blocks, arrays["spread"], arrays["limit"])
