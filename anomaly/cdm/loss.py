r"""The training loss: classify the level, and denoise through the input gradient (Alg. 1).

.. math:: L = w_{ce} \, \mathrm{CE}(f(x_t), t)
          + w_t \, \| \varepsilon - \hat\varepsilon(x_t, t) \|^2 / d

with :math:`w_t = 1` in the paper. The error of eps shrinks by orders of magnitude towards high
noise, and so does the contribution of anatomy, which is visible at high noise, to the loss.
`inverse_error_weights` compensate for this, wholly or in part.

Both terms are needed: with cross-entropy alone the network denoises badly, and denoising alone
does not determine the constant of each level's log density (Table 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.density import logits_and_gradient, noise_of_gradient
from anomaly.cdm.levels import NoiseLevels

__all__ = ["POWERS", "CDMLoss", "LossTerms", "inverse_error_weights", "stratified_levels"]

POWERS = {"uniform": 0.0, "balanced": 0.7, "relative": 1.0}
"""Exponent of a level's weight, which is a power of a reference denoiser's inverse error."""


class LossTerms(NamedTuple):
    """The loss of a batch and its parts.

    Attributes
    ----------
    total : Tensor () with graph
    cross_entropy : Tensor (B,) nats, detached
    denoising : Tensor (B,) mean squared error of eps per pixel value, detached
    """

    total: Tensor
    cross_entropy: Tensor
    denoising: Tensor


class CDMLoss(nn.Module):
    """Training loss of a network on given noise levels.

    The input gradient is computed inside ``forward``, so that a distributed wrapper around this
    module runs one forward and one backward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: NoiseLevels,
        ce_weight: float,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.levels = levels
        self.ce_weight = ce_weight
        self.weights = torch.ones(len(levels)) if weights is None else weights

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor) -> LossTerms:
        """Return the loss of a batch.

        Parameters
        ----------
        x_0, eps : Tensor (B, C, H, W)
        t : Tensor (B,) int64
        """
        x_t = self.levels.perturb(x_0, t, eps)
        logits, gradient = logits_and_gradient(self.network, x_t, t)
        eps_hat = noise_of_gradient(gradient, x_t, t, self.levels)
        cross_entropy = functional.cross_entropy(logits, t, reduction="none")
        denoising = (eps - eps_hat).square().flatten(1).mean(1)
        weights = self.weights.to(denoising)[t]
        total = self.ce_weight * cross_entropy.mean() + (weights * denoising).mean()
        return LossTerms(total, cross_entropy.detach(), denoising.detach())


def inverse_error_weights(errors: Tensor, power: float) -> Tensor:
    """Weights ``errors ** -power`` of the levels, scaled to a mean of 1.

    Parameters
    ----------
    errors : Tensor (T + 2,)
        Mean squared error of eps of a simple denoiser, such as the best linear one
        (`anomaly.cdm.gaussian.CosineGaussianCDM.denoising_error`).
    power : float
        One of `POWERS`. With 0 all levels have equal weight, as in the paper and, on a schedule
        uniform in log-SNR, in a likelihood. With 1 relative errors have equal weight.

    Returns
    -------
    Tensor (T + 2,)
    """
    # Below a hundredth of the noise's variance only the image's mean brightness is visible.
    weights = errors.clamp_min(0.01) ** -power
    return weights / weights.mean()


def stratified_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` levels, each uniform on ``0 .. levels - 1``, evenly spread over the batch.

    A common random offset shifts a regular grid (Kingma et al. 2021, "Variational diffusion
    models", App. I.1): each level is still exactly uniform, and the batch covers all levels, which
    lowers the variance of the loss.

    Returns
    -------
    Tensor (count,) int64
    """
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    spread = (offset + torch.arange(count, dtype=torch.float64) / count) % 1
    return (spread * levels).long()[torch.randperm(count, generator=generator)]
