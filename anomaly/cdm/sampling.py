r"""Sampling images from a CDM: DDPM and DDIM with one step rule.

From level ``t`` to a cleaner level ``s``, with :math:`\hat\varepsilon` from eq. (8) and
:math:`\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t`,

.. math::
    x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - c^2}\, \hat\varepsilon + c\, z, \qquad
    c = \eta \, \frac{\sigma_s}{\sigma_t}
        \sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2}, \quad z \sim N(0, I).

``eta = 0`` is DDIM (Song et al. 2021, eq. 12), ``eta = 1`` is DDPM's ancestral step (Ho et al.
2020) for any alpha and sigma.

Sampled images are synthetic: code that writes one to disk must mark it as such.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from anomaly.cdm.density import Network, clean_estimate, predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError

__all__ = ["sample", "step_ladder"]


def step_ladder(levels: NoiseLevels, steps: int) -> list[int]:
    """Levels of ``steps`` network evaluations, evenly spread from ``T`` down to clean.

    It starts at ``T``, not ``T + 1``: pure noise contains no image to estimate, and level ``T`` of
    every schedule is almost pure noise.

    Raises
    ------
    ConfigError
        If there are fewer than 1 or more than ``T`` steps.

    Examples
    --------
    >>> step_ladder(NoiseLevels.from_name("cosine", 10), 3)
    [10, 7, 3, 0]
    """
    top = levels.last - 1
    if not 1 <= steps <= top:
        raise ConfigError(f"{steps} sampling steps: expected 1 to {top} for this schedule")
    return [round(top * (steps - i) / steps) for i in range(steps)] + [0]


def sample(
    network: Network,
    levels: NoiseLevels,
    noise: Tensor,
    *,
    steps: int,
    eta: float,
    generator: torch.Generator | None = None,
    clip: bool = True,
) -> Tensor:
    """Generate images from noise.

    Parameters
    ----------
    network : callable
    levels : NoiseLevels
    noise : Tensor (B, C, H, W), standard normal
    steps : int
        Network evaluations.
    eta : float in [0, 1]
        0 is DDIM, 1 is DDPM.
    generator : torch.Generator, optional
        For the noise of ``eta > 0``; on the CPU.
    clip : bool
        Clamp the estimate of the clean image to [-1, 1].

    Returns
    -------
    Tensor (B, C, H, W)
    """
    x = noise
    ladder = step_ladder(levels, steps)
    for t_index, s_index in pairwise(ladder):
        t = torch.full((len(x),), t_index, device=x.device)
        s = torch.full_like(t, s_index)
        eps_hat = predict_noise(network, x, t, levels)
        x_0 = clean_estimate(x, eps_hat, t, levels)
        alpha_t, sigma_t = levels.alpha_at(t, x), levels.sigma_at(t, x)
        alpha_s, sigma_s = levels.alpha_at(s, x), levels.sigma_at(s, x)
        if clip:
            x_0 = x_0.clamp(-1, 1)
            eps_hat = (x - alpha_t * x_0) / sigma_t
        c = eta * sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).sqrt()
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) if eta else 0.0
        x = (alpha_s * x_0 + (sigma_s**2 - c**2).clamp_min(0).sqrt() * eps_hat + c * z).detach()
    return x
