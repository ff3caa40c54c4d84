r"""Healthy counterfactual: the model's expectation where a scan departs from normal.

With :math:`M` the suspect pixels of an image :math:`x` and :math:`K` the rest, the pixels of
:math:`M` are replaced repeatedly by the denoiser's expectation for the current image; those of
:math:`K` never change:

.. math::
    x_M \leftarrow \tfrac12 \bigl[ E[x_0 \mid x_t = \alpha_t x + \sigma_t \varepsilon]
        + E[x_0 \mid x_t = \alpha_t x - \sigma_t \varepsilon] \bigr]_M,
    \qquad s_t = \sigma_t / \alpha_t \text{ falling},

with :math:`E[x_0 \mid x_t]` from eq. (8) of the CDM paper (`anomaly.cdm.density`). The image is
noised before it is denoised, as in training; noise and its negative cancel to first order.

For Gaussian data, :math:`x_0 \sim N(m, \Sigma)`, a round at level ``t`` moves ``x_M`` towards

.. math::
    m_M + \Sigma_{MK} (\Sigma_{KK} + s_t^2 I)^{-1} (x_K - m_K),

the expectation of the suspect pixels given the others as if those had noise :math:`s_t`, whatever
the start ``x_M``. The distance along an eigenvector of the covariance of ``M`` given such ``K``,
with eigenvalue :math:`\mu`, shrinks by :math:`\mu / (\mu + s_t^2)`. So high noise determines the
coarse structure, removes the lesion and blurs; low noise adds the fine structure. (This is annealed
plug-and-play inpainting with a stochastic denoiser; cf. Renaud et al., ICML 2024. A sampler that
pastes the known pixels into every step, Lugmayr et al., CVPR 2022, draws one of the possible
images; this is their mean.)

The counterfactual explains a score and is not a picture of the patient: it is smoother than any
scan, and only as healthy as the surrounding pixels. Code that shows or writes it must mark it as
synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from anomaly.cdm.density import Network, clean_estimate, predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError

__all__ = ["CounterfactualSettings", "counterfactual", "suspect_pixels"]


@dataclass(frozen=True)
class CounterfactualSettings:
    """Settings for the replacement of suspect pixels.

    Attributes
    ----------
    noise_to_signal : tuple of float
        ``sigma / alpha`` of the levels, descending.
    rounds : int
        Replacements at every level; each needs two forward and two backward passes.
    dilation : int
        Pixels by which the suspect region is grown, so that it includes the edge of the lesion.
    batch : int
        Images in memory at once.
    seed : int
        Seed of the noise, which is the same for every image: neither batch nor order matters.
    """

    noise_to_signal: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25, 0.12)
    rounds: int = 2
    dilation: int = 2
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse levels that are not descending, and counts without effect."""
        ratios = self.noise_to_signal
        if not ratios or ratios[-1] <= 0 or any(a <= b for a, b in pairwise(ratios)):
            raise ConfigError(
                f"counterfactual.noise_to_signal is {ratios}: expected falling values above 0"
            )
        for name, least in (("rounds", 1), ("dilation", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"counterfactual.{name} is {getattr(self, name)}: expected {least} or more"
                )


def suspect_pixels(marked: NDArray[np.bool_], dilation: int) -> NDArray[np.bool_]:
    """Return marked pixels and their neighbourhood.

    Parameters
    ----------
    marked : ndarray (N, H, W) bool, in the network's frame
        Pixels of regions (`anomaly.regions.find_regions`). Regions are found on
        the source's pixels, where peaks are lower than in the network's frame: with evidence of the
        network's frame, scans without a region would be changed.
    dilation : int
        Pixels by which the regions are grown, in all eight directions.

    Returns
    -------
    ndarray (N, H, W) bool
    """
    # The window covers one image: a region never grows into the next one.
    side = 2 * dilation + 1
    grown: NDArray[np.bool_] = ndimage.maximum_filter(marked, size=(1, side, side))
    return grown


def counterfactual(
    network: Network,
    levels: NoiseLevels,
    images: Tensor,
    suspect: Tensor,
    settings: CounterfactualSettings,
) -> Tensor:
    """Replace suspect pixels by the model's expectation given the other pixels.

    Parameters
    ----------
    network : callable
        In evaluation mode.
    levels : NoiseLevels
    images : Tensor (N, C, H, W) in [-1, 1]
    suspect : Tensor (N, H, W) bool, on the same device
        `suspect_pixels`; with True in every pixel the result is the likeliest image of all.
    settings : CounterfactualSettings

    Returns
    -------
    Tensor (N, C, H, W) in [-1, 1]
        Equal to `images`, bit for bit, wherever `suspect` is False.

    Raises
    ------
    ConfigError
        If images and suspect pixels differ in number or size.
    """
    if suspect.shape != images[:, 0].shape:
        raise ConfigError(
            f"the suspect pixels are {tuple(suspect.shape)}: expected "
            f"{tuple(images[:, 0].shape)}, a pixel for each of the images'"
        )
    expected = images.clone()
    touched = suspect.flatten(1).any(1).nonzero()[:, 0]
    for first in range(0, len(touched), settings.batch):
        rows = touched[first : first + settings.batch]
        expected[rows] = _expect(network, levels, images[rows], suspect[rows, None], settings)
    return expected


def _expect(
    network: Network,
    levels: NoiseLevels,
    images: Tensor,
    suspect: Tensor,
    settings: CounterfactualSettings,
) -> Tensor:
    """`counterfactual` of one batch; `suspect` is (B, 1, H, W)."""
    generator = torch.Generator().manual_seed(settings.seed)
    x = images
    for ratio in settings.noise_to_signal:
        t = torch.full((len(images),), levels.nearest(ratio), device=images.device)
        for _ in range(settings.rounds):
            noise = torch.randn(images.shape[1:], generator=generator).to(images)
            sides = [_denoised(network, levels, x, t, side) for side in (noise, -noise)]
            x = torch.where(suspect, torch.stack(sides).mean(0).clamp(-1, 1), images)
    return x


def _denoised(network: Network, levels: NoiseLevels, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``E[x_0 | x_t]`` of images noised to level `t` with the same noise (C, H, W) for all."""
    x_t = levels.perturb(x, t, noise.expand_as(x))
    eps_hat = predict_noise(network, x_t, t, levels)
    return clean_estimate(x_t, eps_hat.detach(), t, levels)
