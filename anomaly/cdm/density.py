r"""Density, score and denoiser of a noise-level classifier: one definition of each identity.

A network :math:`f(x) \to` logits ``(B, T + 2)`` classifies the noise level of ``x``; its input is
``x_t``, never ``t``. With levels drawn uniformly in training,

.. math::
    F(x, t) &= f(x)_{T+1} - f(x)_t = \log \frac{N(x; 0, I)}{p_t(x)} \\
    E[\varepsilon \mid x_t] &= \sigma_t (\nabla_x F(x_t, t) + x_t)  \quad\text{(eq. 8)} \\
    \log p_t(x) &= \log N(x; 0, I) + f(x)_t - f(x)_{T+1}            \quad\text{(eq. 10)} \\
    \text{bits/dim} &= -\frac{\log p_0(x)}{d \ln 2} + \log_2 \frac{n - 1}{2}

for ``n`` grey values spread over ``[-1, 1]``. One forward pass gives all levels; the
denoiser needs one backward pass in addition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError

__all__ = [
    "HasInputGradient",
    "Network",
    "bits_per_dim",
    "clean_estimate",
    "denoising_bits_per_dim",
    "dequantize",
    "grey_step",
    "log_density",
    "log_ratio",
    "log_ratio_gradient",
    "log_reference",
    "logits_and_gradient",
    "noise_of_gradient",
    "predict_noise",
    "score",
]

Network = Callable[[Tensor], Tensor]


def log_reference(x: Tensor) -> Tensor:
    """Log density of pure noise, ``log N(x; 0, I)``: (B,) nats."""
    flat = x.flatten(1).to(torch.float64)  # d * log(2 pi) / 2 in float32 would lose 1e-3 nats
    return -0.5 * (flat.square() + math.log(2 * math.pi)).sum(1)


def log_ratio(logits: Tensor, t: Tensor) -> Tensor:
    """``F(x, t) = log N(x; 0, I) - log p_t(x)``: (B,) nats.

    Parameters
    ----------
    logits : Tensor (B, T + 2)
    t : Tensor (B,) int64
    """
    return logits[:, -1] - logits.gather(1, t[:, None])[:, 0]


def log_density(logits: Tensor, x: Tensor) -> Tensor:
    """``log p_t(x)`` for every level at once: (B, T + 2) float64 nats (eq. 10).

    Parameters
    ----------
    logits : Tensor (B, T + 2)
        Output of the network for `x`.
    x : Tensor (B, C, H, W)
    """
    wide = logits.to(torch.float64)
    return log_reference(x)[:, None] + wide - wide[:, -1:]


@runtime_checkable
class HasInputGradient(Protocol):
    """A network that computes its input gradient by forward operations (`anomaly.cdm.layers`)."""

    def log_ratio_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``F(x, t)`` by x: (B, C, H, W)."""
        ...

    def logits_and_gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T + 2), and the same gradient."""
        ...


def log_ratio_gradient(network: Network, x: Tensor, t: Tensor) -> Tensor:
    """Gradient of ``F(x, t)`` by x, without a graph: (B, C, H, W).

    Parameters
    ----------
    network : callable (B, C, H, W) -> (B, T + 2)
        Its own `HasInputGradient.log_ratio_gradient` is used if it has one, else autograd.
    x : Tensor (B, C, H, W)
    t : Tensor (B,) int64
    """
    with torch.no_grad():
        if isinstance(network, HasInputGradient):
            return network.log_ratio_gradient(x.detach(), t)
        return logits_and_gradient(network, x, t)[1]


def logits_and_gradient(network: Network, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, T + 2), and the gradient of ``F(x, t)`` by x (B, C, H, W).

    Both can be differentiated by the parameters where gradients are enabled. Parameters as in
    `log_ratio_gradient`.
    """
    if isinstance(network, HasInputGradient):
        return network.logits_and_gradient(x.detach(), t)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = network(leaf)
        ratio = log_ratio(logits, t).sum()
        (gradient,) = torch.autograd.grad(ratio, leaf, create_graph=differentiable)
    return (logits if differentiable else logits.detach()), gradient


def noise_of_gradient(gradient: Tensor, x_t: Tensor, t: Tensor, levels: NoiseLevels) -> Tensor:
    """Optimal denoiser ``E[eps | x_t]`` (eq. 8) from the gradient of ``F(x_t, t)``."""
    return levels.sigma_at(t, x_t) * (gradient + x_t)


def predict_noise(network: Network, x_t: Tensor, t: Tensor, levels: NoiseLevels) -> Tensor:
    """Optimal denoiser ``E[eps | x_t]`` (eq. 8), without a graph: (B, C, H, W).

    Parameters
    ----------
    network : callable (B, C, H, W) -> (B, T + 2)
    x_t : Tensor (B, C, H, W)
    t : Tensor (B,) int64
    levels : NoiseLevels
    """
    return noise_of_gradient(log_ratio_gradient(network, x_t, t), x_t, t, levels)


def score(network: Network, x: Tensor, t: Tensor) -> Tensor:
    """``grad_x log p_t(x) = -(grad_x F(x, t) + x)``: (B, C, H, W); defined at level 0 too."""
    return -(log_ratio_gradient(network, x, t) + x.detach())


def clean_estimate(x_t: Tensor, eps_hat: Tensor, t: Tensor, levels: NoiseLevels) -> Tensor:
    """``E[x_0 | x_t] = (x_t - sigma[t] E[eps | x_t]) / alpha[t]``; not defined at pure noise."""
    return (x_t - levels.sigma_at(t, x_t) * eps_hat) / levels.alpha_at(t, x_t)


def grey_step(grey_levels: int) -> float:
    """Distance between neighbouring grey values spread over [-1, 1].

    Raises
    ------
    ConfigError
        If there are fewer than 2 grey values.
    """
    if grey_levels < 2:
        raise ConfigError(f"{grey_levels} grey levels: expected at least 2")
    return 2 / (grey_levels - 1)


def bits_per_dim(log_p: Tensor, dims: int, grey_levels: int) -> Tensor:
    """Code length in bits per pixel value, from nats of a density on [-1, 1].

    This is a code length only for dequantised images (see `dequantize`).

    Parameters
    ----------
    log_p : Tensor
        Log density, nats.
    dims : int
        Pixel values per image, ``C * H * W``.
    grey_levels : int
        Grey values spread over [-1, 1]; state it with every figure.
    """
    return -log_p / (dims * math.log(2)) - math.log2(grey_step(grey_levels))


def denoising_bits_per_dim(
    errors: Tensor, t: Tensor, levels: NoiseLevels, grey_levels: int
) -> float:
    r"""Upper bound on the code length, bits per pixel value, computed only from denoising errors.

    By the relation of mutual information and denoising error (Guo, Shamai and Verdu 2005, IEEE
    Trans. Inf. Theory 51; for diffusion models Kong et al. 2023, arXiv 2302.03792) the entropy of
    images is an integral over the error of the best denoiser, with
    :math:`\gamma = \alpha_t^2 / \sigma_t^2`,

    .. math:: \frac{h(x_0)}{d} = \frac12 \ln(2 \pi e) - \frac12 \int
              \Big( \frac{\gamma}{1 + \gamma} - \frac{E \|\varepsilon -
              \hat\varepsilon\|^2}{d} \Big) \, d \ln \gamma .

    Any other denoiser has a larger error, and for images in [-1, 1] noise beyond the first and
    last level only lowers the integral. So this is an upper bound, up to sampling of images and
    noise and the trapezoids between levels. `bits_per_dim` of a trained network is an estimate:
    only the cross-entropy normalises its density, and it can err to either side.

    Parameters
    ----------
    errors : Tensor (N,)
        Mean squared error of eps, of images noised to levels `t`.
    t : Tensor (N,) int64
        Drawn uniformly on ``0 .. T + 1`` (`anomaly.cdm.loss.stratified_levels`).
    levels : NoiseLevels
    grey_levels : int
        As in `bits_per_dim`.
    """
    snr = (levels.alpha[1:-1] / levels.sigma[1:-1]).square()
    steps = -torch.diff(torch.log(snr))
    width = torch.zeros(len(levels), dtype=torch.float64)  # of each level's piece of ln(gamma)
    width[1:-2] += steps / 2
    width[2:-1] += steps / 2
    signal = torch.zeros_like(width)
    signal[1:-1] = snr / (1 + snr)
    t = t.cpu()
    gain = width[t] * (signal[t] - errors.cpu().to(torch.float64))
    nats = 0.5 * math.log(2 * math.pi * math.e) - 0.5 * len(levels) * float(gain.mean())
    return float(bits_per_dim(torch.tensor(-nats, dtype=torch.float64), 1, grey_levels))


def dequantize(x: Tensor, grey_levels: int, noise: Tensor) -> Tensor:
    """Spread each grey value evenly over its cell: ``x + (noise - 1/2) grey_step``.

    Parameters
    ----------
    x : Tensor in [-1, 1], on the grid of `grey_levels` values
    noise : Tensor of the same shape, uniform in [0, 1)
    """
    return x + (noise - 0.5) * grey_step(grey_levels)
