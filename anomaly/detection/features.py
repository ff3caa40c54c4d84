r"""What the network says of one image: a vector of named numbers, and residual maps.

=====================  ==================================================================
``nll``                bits/dim, dequantised (one pass)
``profile_k``          noise-level profile: :math:`-\log p_t(x) / (d \ln 2)` of the image itself
                       at 16 levels of the ladder (the same pass)
``posterior_mean``     mean of :math:`t / (T+1)` under the level posterior (DTE, arXiv
                       2305.18593; the same pass)
``posterior_clean``    :math:`-\log p(t = 0 \mid x)`, nats (the same pass)
``score_norm_r``       :math:`\|\hat\varepsilon\|^2 / d` of the image noised to
                       :math:`\sigma / \alpha = r` (MSMA, arXiv 2010.13132): one pass forward
                       and one backward a level
``residual_r``         :math:`\|\hat\varepsilon - \varepsilon\|^2 / d`, the denoising error there
=====================  ==================================================================

The residual map of level ``r`` is :math:`x_0 - E[x_0 \mid x_t]`, a scaled input gradient of the
log density ratio: what the model would have painted differently, signed.

Noise is a function of (seed, draw) and the same for every image, so a score depends on neither the
batch nor the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.cdm.density import (
    bits_per_dim,
    clean_estimate,
    dequantize,
    log_density,
    predict_noise,
)
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.heatmap import LOCAL_FEATURES
from anomaly.errors import ConfigError

__all__ = ["GROUPS", "FeatureSettings", "Observation", "all_names", "feature_names", "observe"]

PROFILE_RUNGS = 16

GROUPS = ("nll", "profile", "posterior", "score_norm", "residual", "evidence")
"""First part of the features' names; ``evidence`` is `anomaly.detection.heatmap.LOCAL_FEATURES`."""


@dataclass(frozen=True)
class FeatureSettings:
    """Which levels are looked at, and how often.

    Attributes
    ----------
    noise_to_signal : tuple of float
        ``sigma / alpha`` of the levels for score norms and residuals, rising.
    map_range : tuple of float
        Residual maps are kept for levels with ``sigma / alpha`` within this: below it they show
        texture noise, above it how one patient differs from another.
    draws : int
        Noise draws averaged.
    seed : int
    use : tuple of str
        Features that the detector's density is over, by name or by group; all are computed and
        reported.
    """

    noise_to_signal: tuple[float, ...] = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    map_range: tuple[float, float] = (0.06, 0.5)
    draws: int = 3
    seed: int = 0
    use: tuple[str, ...] = GROUPS

    def __post_init__(self) -> None:
        """Refuse an empty or unordered ladder."""
        ladder = self.noise_to_signal
        if not ladder or any(a >= b for a, b in pairwise(ladder)):
            raise ConfigError(f"features.noise_to_signal is {ladder}: expected rising values")
        if ladder[0] <= 0:
            raise ConfigError(f"features.noise_to_signal starts at {ladder[0]}: expected > 0")
        if not self.map_ratios:
            raise ConfigError(
                f"features.map_range is {self.map_range}: expected a range that holds one of the "
                f"levels {ladder}"
            )
        if not self.use:
            raise ConfigError(f"features.use is empty: expected some of {GROUPS}")
        for name in self.use:
            if not any(known.startswith(name) for known in all_names(self)):
                raise ConfigError(
                    f"features.use holds {name!r}: expected groups {GROUPS} or names of features "
                    f"{all_names(self)}"
                )
        if self.draws < 1:
            raise ConfigError(f"features.draws is {self.draws}: expected 1 or more")

    @property
    def map_ratios(self) -> tuple[float, ...]:
        """``sigma / alpha`` of the levels that have a residual map."""
        low, high = self.map_range
        return tuple(r for r in self.noise_to_signal if low <= r <= high)


@dataclass(frozen=True)
class Observation:
    """What the network says of a set of images.

    Attributes
    ----------
    features : ndarray (N, F) float64, columns as `feature_names`
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one a level of `FeatureSettings.map_ratios`, in units of ``x``.
    """

    features: NDArray[np.float64]
    residuals: NDArray[np.float32]


def feature_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Names of the columns of `Observation.features`."""
    return (
        "nll",
        *(f"profile_{k}" for k in range(PROFILE_RUNGS)),
        "posterior_mean",
        "posterior_clean",
        *(f"score_norm_{r:g}" for r in settings.noise_to_signal),
        *(f"residual_{r:g}" for r in settings.noise_to_signal),
    )


def all_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Names of every feature of a scan: the network's, then those of its evidence map."""
    return (*feature_names(settings), *LOCAL_FEATURES)


def observe(
    network: nn.Module,
    levels: NoiseLevels,
    images: Tensor,
    settings: FeatureSettings,
    *,
    grey_levels: int,
) -> Observation:
    """Ask the network about images.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    levels : NoiseLevels
    images : Tensor (N, C, H, W) in [-1, 1], quantised, on the network's device
    settings : FeatureSettings
    grey_levels : int
    """
    rows = [
        _observe_once(network, levels, images, settings, grey_levels, draw)
        for draw in range(settings.draws)
    ]
    return Observation(
        torch.stack([features for features, _ in rows]).mean(0).cpu().numpy(),
        torch.stack([maps for _, maps in rows]).mean(0).cpu().numpy(),
    )


def _observe_once(
    network: nn.Module,
    levels: NoiseLevels,
    images: Tensor,
    settings: FeatureSettings,
    grey_levels: int,
    draw: int,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + draw)
    shape = images.shape[1:]
    x_0 = dequantize(images, grey_levels, torch.rand(shape, generator=generator).to(images))
    columns = [_density_features(network, levels, x_0, grey_levels)]
    norms, errors, maps = [], [], []
    for ratio in settings.noise_to_signal:
        t = torch.full((len(images),), levels.nearest(ratio), device=images.device)
        eps = torch.randn(shape, generator=generator).to(images).expand_as(images)
        x_t = levels.perturb(x_0, t, eps)
        eps_hat, _ = predict_noise(network, x_t, t, levels)
        eps_hat = eps_hat.detach()
        norms.append(eps_hat.square().flatten(1).mean(1))
        errors.append((eps_hat - eps).square().flatten(1).mean(1))
        if ratio in settings.map_ratios:
            residual = x_0 - clean_estimate(x_t, eps_hat, t, levels)
            maps.append(residual.mean(1))  # colour channels see one place
    columns += [torch.stack(norms, 1).double(), torch.stack(errors, 1).double()]
    return torch.cat(columns, 1), torch.stack(maps, 1)


@torch.no_grad()
def _density_features(
    network: nn.Module, levels: NoiseLevels, x: Tensor, grey_levels: int
) -> Tensor:
    """NLL, profile and posterior: (N, 1 + 16 + 2) float64."""
    logits = network(x)
    log_p = log_density(logits, x)
    dims = x[0].numel()
    rungs = torch.linspace(1, levels.last - 1, PROFILE_RUNGS).round().long()
    log_posterior = torch.log_softmax(logits.double(), 1)
    place = torch.linspace(0, 1, len(levels), dtype=torch.float64, device=x.device)
    return torch.cat(
        [
            bits_per_dim(log_p[:, :1], dims, grey_levels),
            bits_per_dim(log_p[:, rungs.to(x.device)], dims, grey_levels),
            (log_posterior.exp() @ place)[:, None],
            -log_posterior[:, :1],
        ],
        1,
    )
