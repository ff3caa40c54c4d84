"""Feature groups of the one-pass density: likelihood, its profile, posterior of the noise level."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomaly.cdm.density import bits_per_dim
from anomaly.detection.features.group import DrawGroup, NoiseDraw, ObservedScans, ScanGroup

__all__ = ["NLL", "NLL_EXCESS", "POSTERIOR", "PROFILE"]

PROFILE_LEVELS = 16
"""Noise levels of the profile."""


def _nll(draw: NoiseDraw) -> Tensor:
    return bits_per_dim(draw.log_density[:, :1], draw.dims, draw.grey_levels)


def _nll_excess(scans: ObservedScans) -> NDArray[np.float64]:
    return scans.drawn["nll"] - _png_bits(scans.images, scans.grey_levels)[:, None]


def _profile(draw: NoiseDraw) -> Tensor:
    last = draw.log_density.shape[1] - 1
    levels = torch.linspace(1, last - 1, PROFILE_LEVELS).round().long()
    chosen = draw.log_density[:, levels.to(draw.log_density.device)]
    return bits_per_dim(chosen, draw.dims, draw.grey_levels)


def _posterior(draw: NoiseDraw) -> Tensor:
    # A level's log density is its logit plus what is the same at all levels.
    log_posterior = torch.log_softmax(draw.log_density, 1)
    count = log_posterior.shape[1]
    place = torch.linspace(0, 1, count, dtype=torch.float64, device=log_posterior.device)
    return torch.cat([(log_posterior.exp() @ place)[:, None], -log_posterior[:, :1]], 1)


def _png_bits(images: Tensor, grey_levels: int) -> NDArray[np.float64]:
    """Bits/dim of the images as PNG files, channel by channel: (N,) float64."""
    grey = ((images.double().cpu().numpy() + 1) / 2 * (grey_levels - 1)).round().clip(0)
    values = grey.astype(np.uint8 if grey_levels <= 256 else np.uint16)
    sizes = np.zeros(len(images))
    for index, image in enumerate(values):
        for channel in image:
            file = io.BytesIO()
            Image.fromarray(channel).save(file, "png")
            sizes[index] += 8 * len(file.getvalue())
    return sizes / images[0].numel()


NLL = DrawGroup(name="nll", columns=lambda _: ("nll",), compute=_nll)
NLL_EXCESS = ScanGroup(name="nll_excess", columns=lambda _: ("nll_excess",), compute=_nll_excess)
PROFILE = DrawGroup(
    name="profile",
    columns=lambda _: tuple(f"profile_{k}" for k in range(PROFILE_LEVELS)),
    compute=_profile,
)
POSTERIOR = DrawGroup(
    name="posterior",
    columns=lambda _: ("posterior_mean", "posterior_clean"),
    compute=_posterior,
)
