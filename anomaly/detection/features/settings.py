"""Settings of the features: noise levels, noise draws, grid of cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from anomaly.errors import ConfigError

__all__ = ["FeatureSettings"]


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of the features.

    Attributes
    ----------
    noise_to_signal : tuple of float
        ``sigma / alpha`` of the levels for score norms and residuals, ascending.
    draws : int
        Number of noise draws averaged; with an even number every draw has its negative.
    grid : int
        Cells per side of the coarse grid.
    border : int
        Number of cells excluded on every side.
    bands : int
        Octave bands of the image itself.
    precision : {"float32", "bfloat16", "auto"}
        Precision of the network's layers for the predicted noise; densities are always computed in
        float32. "auto" is bfloat16 where the processor multiplies it and
        its residual maps agree with those in float32 (`anomaly.detection.passes`), else float32.
    seed : int
    """

    noise_to_signal: tuple[float, ...] = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    draws: int = 2
    grid: int = 8
    border: int = 1
    bands: int = 4
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse empty or unordered levels, and counts out of range."""
        ratios = self.noise_to_signal
        if not ratios or any(a >= b for a, b in pairwise(ratios)):
            raise ConfigError(f"features.noise_to_signal is {ratios}: expected rising values")
        if ratios[0] <= 0:
            raise ConfigError(f"features.noise_to_signal starts at {ratios[0]}: expected > 0")
        for name in ("draws", "grid", "bands"):
            if getattr(self, name) < 1:
                raise ConfigError(f"features.{name} is {getattr(self, name)}: expected 1 or more")

        if not 0 <= 2 * self.border < self.grid:
            raise ConfigError(
                f"features.border is {self.border}: expected 0 or more, and cells left inside a "
                f"grid of {self.grid}"
            )

    @property
    def gradients(self) -> int:
        """Number of input gradients an image."""
        return self.draws * len(self.noise_to_signal)

    @property
    def forward_passes(self) -> int:
        """Number of forward passes an image: of gradients, and one density of two draws."""
        return self.gradients + (self.draws + 1) // 2

    @property
    def cells(self) -> int:
        """Number of cells, without the excluded border."""
        return (self.grid - 2 * self.border) ** 2
