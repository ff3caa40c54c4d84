r"""Noise levels from a clean image to pure noise.

.. math:: x_t = \alpha_t x_0 + \sigma_t \varepsilon, \quad \varepsilon \sim N(0, I),
          \quad t = 0, 1, \dots, T + 1

Level 0 is clean (``alpha = 1, sigma = 0``); level ``T + 1`` is pure noise (``alpha = 0,
sigma = 1``). Every identity of the method needs only ``alpha[t]`` and ``sigma[t]``, so one
implementation serves every schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly.cdm.schedules import SCHEDULES
from anomaly.errors import ConfigError

__all__ = ["NoiseLevels"]


@dataclass(frozen=True)
class NoiseLevels:
    """A noise schedule as two tables.

    Attributes
    ----------
    name : str
        A key of `anomaly.cdm.schedules.SCHEDULES`.
    alpha, sigma : Tensor (T + 2,) float64
        Signal and noise amplitude of every level.
    """

    name: str
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def from_name(cls, name: str, steps: int) -> NoiseLevels:
        """Build a schedule with ``steps`` = T levels between clean and pure noise.

        Raises
        ------
        ConfigError
            If the name is unknown or ``steps < 1``.
        """
        if name not in SCHEDULES:
            raise ConfigError(f"schedule {name!r} is unknown: expected one of {sorted(SCHEDULES)}")
        if steps < 1:
            raise ConfigError(
                f"a schedule needs at least 1 step between clean and noise, not {steps}"
            )
        alpha, sigma = SCHEDULES[name](steps)
        clean, noise = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
        return cls(
            name,
            torch.cat([clean[:1], alpha, noise[:1]]),
            torch.cat([clean[1:], sigma, noise[1:]]),
        )

    def __len__(self) -> int:
        """Return the number of levels, ``T + 2``."""
        return len(self.alpha)

    @property
    def last(self) -> int:
        """Index ``T + 1`` of pure noise."""
        return len(self.alpha) - 1

    def alpha_at(self, t: Tensor, like: Tensor) -> Tensor:
        """Return ``alpha[t]`` shaped ``(B, 1, 1, 1)``, with the dtype and device of `like`."""
        return _rows(self.alpha, t, like)

    def sigma_at(self, t: Tensor, like: Tensor) -> Tensor:
        """Return ``sigma[t]`` shaped ``(B, 1, 1, 1)``, with the dtype and device of `like`."""
        return _rows(self.sigma, t, like)

    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise clean images to level ``t``: ``x_t = alpha[t] x_0 + sigma[t] eps`` (eq. 3).

        Parameters
        ----------
        x_0, eps : Tensor (B, C, H, W)
        t : Tensor (B,) int64 in [0, T + 1]
        """
        return self.alpha_at(t, x_0) * x_0 + self.sigma_at(t, x_0) * eps

    def nearest(self, noise_to_signal: float) -> int:
        """Return the level whose ``sigma / alpha`` is nearest to the given ratio, in logarithm."""
        ratio = torch.log(self.sigma[1:-1] / self.alpha[1:-1])
        return 1 + int(torch.argmin((ratio - math.log(noise_to_signal)).abs()))


def _rows(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    rows = table.to(device=like.device, dtype=like.dtype)[t.to(like.device)]
    return rows.reshape(-1, *[1] * (like.ndim - 1))
