r"""Noise schedules: formulas for signal and noise amplitude at T levels between clean and noise.

A schedule is a function of T that returns ``alpha`` and ``sigma``, each (T,) float64, with
``alpha`` falling and ``sigma`` rising; `anomaly.cdm.levels` adds the two ends. A schedule's
parameters are constants in its formula: with other values it is a different schedule, with its own
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from anomaly.errors import ConfigError

__all__ = [
    "SCHEDULES",
    "Schedule",
    "cosine",
    "flow",
    "linear",
    "log_snr",
    "register_schedule",
    "uniform",
]

Schedule: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]
"""``schedule(steps)``: ``alpha`` and ``sigma`` of T = ``steps`` levels."""


def _variance_preserving(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def linear(steps: int) -> tuple[Tensor, Tensor]:
    """DDPM (Ho et al. 2020): beta from 1e-4 to 0.02 over 1000 steps, rescaled to ``steps``."""
    # Ho et al. define beta for T = 1000; the same total noise in fewer steps needs larger betas.
    scale = 1000 / steps
    beta = torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), steps, dtype=torch.float64)
    return _variance_preserving(torch.cumprod(1 - beta, 0))


def cosine(steps: int) -> tuple[Tensor, Tensor]:
    """Squared-cosine alpha_bar (Nichol & Dhariwal 2021) with their offset 0.008."""
    s = 0.008
    t = torch.arange(0, steps + 1, dtype=torch.float64) / (steps + 1)
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return _variance_preserving(f[1:] / f[0])


def uniform(steps: int) -> tuple[Tensor, Tensor]:
    """``sigma = t / (T + 1)``, variance preserving: the paper's CDM (unif.)."""
    sigma = torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1)
    return (1 - sigma**2).sqrt(), sigma


def log_snr(steps: int) -> tuple[Tensor, Tensor]:
    """``log(sigma / alpha)`` uniform from 1/200 to 100, variance preserving."""
    # 1/200 is below half a grey step of 8 bits on [-1, 1]; at 100 no image feature survives.
    ratio = torch.logspace(math.log10(0.005), 2, steps, dtype=torch.float64)
    return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()


def flow(steps: int) -> tuple[Tensor, Tensor]:
    """Optimal transport / flow matching: ``alpha = 1 - u, sigma = u`` (App. B.4).

    Examples
    --------
    >>> alpha, sigma = flow(3)
    >>> alpha.tolist(), sigma.tolist()
    ([0.75, 0.5, 0.25], [0.25, 0.5, 0.75])
    """
    sigma = torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1)
    return 1 - sigma, sigma


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "cosine": cosine,
    "uniform": uniform,
    "log_snr": log_snr,
    "flow": flow,
}
"""Schedules by their names in settings and bundles."""


def register_schedule(name: str, schedule: Schedule) -> None:
    """Register a schedule under a name that settings can use.

    Raises
    ------
    ConfigError
        If the name exists already.
    """
    if name in SCHEDULES:
        raise ConfigError(f"there is a schedule {name!r} already: give it another name")
    SCHEDULES[name] = schedule
