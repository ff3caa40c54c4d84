"""Which noise levels are looked at, how often, and on which grid of places."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from anomaly.errors import ConfigError

__all__ = ["FeatureSettings"]


@dataclass(frozen=True)
class FeatureSettings:
    """Which levels are looked at, and how often.

    Attributes
    ----------
    noise_to_signal : tuple of float
        ``sigma / alpha`` of the levels for score norms and residuals, rising.
    map_range : tuple of float
        The heatmap looks at levels with ``sigma / alpha`` within this: below it they show texture
        noise, above it how one patient differs from another.
    draws : int
        Noise draws averaged; an even number lets every draw meet its negative.
    grid : int
        Cells a side of the coarse grid.
    border : int
        Cells of it left out on every side.
    bands : int
        Octave bands of the image itself.
    precision : {"float32", "bfloat16"}
        Of the network's layers; a detector is fitted and calibrated at the one it scores with.
    seed : int
    """

    noise_to_signal: tuple[float, ...] = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    map_range: tuple[float, float] = (0.06, 0.5)
    draws: int = 2
    grid: int = 8
    border: int = 1
    bands: int = 4
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty or unordered ladder."""
        ladder = self.noise_to_signal
        if not ladder or any(a >= b for a, b in pairwise(ladder)):
            raise ConfigError(f"features.noise_to_signal is {ladder}: expected rising values")
        if ladder[0] <= 0:
            raise ConfigError(f"features.noise_to_signal starts at {ladder[0]}: expected > 0")
        if not any(self.in_map):
            raise ConfigError(
                f"features.map_range is {self.map_range}: expected a range that holds one of the "
                f"levels {ladder}"
            )
        for name in ("draws", "grid", "bands"):
            if getattr(self, name) < 1:
                raise ConfigError(f"features.{name} is {getattr(self, name)}: expected 1 or more")

        if not 0 <= 2 * self.border < self.grid:
            raise ConfigError(
                f"features.border is {self.border}: expected 0 or more, and cells left inside a "
                f"grid of {self.grid}"
            )

    @property
    def in_map(self) -> tuple[bool, ...]:
        """Whether each level of `noise_to_signal` is one that the heatmap looks at."""
        low, high = self.map_range
        return tuple(low <= ratio <= high for ratio in self.noise_to_signal)
