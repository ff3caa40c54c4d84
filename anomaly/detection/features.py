r"""What the network says of one image: named numbers in groups, and residual maps.

=====================  ==================================================================
``nll``                bits/dim, dequantised (one pass)
``nll_excess``         ``nll`` less the bits/dim of the image as a PNG (complexity-corrected,
                       arXiv 1909.11480): what the density calls surprising, beyond texture
``profile_k``          noise-level profile: :math:`-\log p_t(x) / (d \ln 2)` of the image itself
                       at 16 levels of the ladder (the same pass)
``posterior_mean``     mean of :math:`t / (T+1)` under the level posterior (DTE, arXiv
                       2305.18593; the same pass)
``posterior_clean``    :math:`-\log p(t = 0 \mid x)`, nats (the same pass)
``score_norm_r``       :math:`\|\hat\varepsilon\|^2 / d` of the image noised to
                       :math:`\sigma / \alpha = r` (MSMA, arXiv 2010.13132): one pass forward
                       and one backward a level
``residual_r``         :math:`\|\hat\varepsilon - \varepsilon\|^2 / d`, the denoising error there
``octave_r_k``         log energy of the residual map of level ``r`` in octave ``k``
``energy_r_c``         log energy of it in cell ``c`` of a coarse grid, relative to the image
``texture_k_c``        log energy of octave band ``k`` of the image itself there, relative to the
                       image; no network takes part
``signed_r_c``         mean of the residual map of level ``r`` in cell ``c``
``evidence_...``       of the heatmap (`anomaly.detection.heatmap.local_features`)
=====================  ==================================================================

The residual map of level ``r`` is :math:`x_0 - E[x_0 \mid x_t]`, a scaled input gradient of the
log density ratio: what the model would have painted differently, signed. The groups from ``octave``
on are local features (`anomaly.detection.local`); the grid of cells moves with the anatomy
(`anomaly.detection.placement`).

Noise is a function of (seed, draw) and the same for every image, so a score depends on neither the
batch nor the order. Every second draw is the negative of the one before: what the noise adds to a
residual in first order cancels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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
from anomaly.detection.local import (
    OCTAVES,
    cell_energies,
    cell_means,
    image_bands,
    octave_energies,
)
from anomaly.detection.placement import displacements
from anomaly.errors import ConfigError

__all__ = [
    "GRIDS",
    "GROUPS",
    "FeatureSettings",
    "Observation",
    "feature_groups",
    "join",
    "observe",
    "reported_names",
]

PROFILE_RUNGS = 16

GROUPS = (
    "nll",
    "nll_excess",
    "profile",
    "posterior",
    "score_norm",
    "residual",
    "octave",
    "energy",
    "texture",
    "signed",
    "evidence",
)
"""Groups of features, in the order of the detector's columns."""

GRIDS = ("energy", "texture", "signed")
"""Groups with a number a place: for the detector, too many to be reported one by one."""


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


@dataclass(frozen=True)
class Observation:
    """What the network says of a set of images.

    Attributes
    ----------
    groups : dict of str to ndarray (N, F) float64
        Features by group, columns as `feature_groups`; all but ``evidence``, which needs a heatmap
        model.
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one a level of `FeatureSettings.noise_to_signal`, in units of ``x``.
    shifts : ndarray (N, 2) float64
        Where the anatomy lies (`anomaly.detection.placement.displacements`).
    blank : ndarray (N, H, W) bool
        Pixels without evidence (`anomaly.data.blanks`).
    """

    groups: dict[str, NDArray[np.float64]]
    residuals: NDArray[np.float32]
    shifts: NDArray[np.float64]
    blank: NDArray[np.bool_]

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Observation:
        """Return the observation of some of the images."""
        groups = {k: v[rows] for k, v in self.groups.items()}
        return Observation(groups, self.residuals[rows], self.shifts[rows], self.blank[rows])


def join(parts: list[Observation]) -> Observation:
    """Put observations of several sets of images one after another."""
    return Observation(
        {k: np.concatenate([part.groups[k] for part in parts]) for k in parts[0].groups},
        np.concatenate([part.residuals for part in parts]),
        np.concatenate([part.shifts for part in parts]),
        np.concatenate([part.blank for part in parts]),
    )


def feature_groups(settings: FeatureSettings) -> dict[str, tuple[str, ...]]:
    """Names of all features, by group, in the order of `GROUPS`."""
    ratios = [f"{ratio:g}" for ratio in settings.noise_to_signal]
    cells = range((settings.grid - 2 * settings.border) ** 2)
    return {
        "nll": ("nll",),
        "nll_excess": ("nll_excess",),
        "profile": tuple(f"profile_{k}" for k in range(PROFILE_RUNGS)),
        "posterior": ("posterior_mean", "posterior_clean"),
        "score_norm": tuple(f"score_norm_{r}" for r in ratios),
        "residual": tuple(f"residual_{r}" for r in ratios),
        "octave": tuple(f"octave_{r}_{k}" for r in ratios for k in range(OCTAVES)),
        "energy": tuple(f"energy_{r}_{c}" for r in ratios for c in cells),
        "texture": tuple(f"texture_{k}_{c}" for k in range(settings.bands) for c in cells),
        "signed": tuple(f"signed_{r}_{c}" for r in ratios for c in cells),
        "evidence": LOCAL_FEATURES,
    }


def reported_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Names of the features that are reported for every scan: all groups but `GRIDS`."""
    groups = feature_groups(settings)
    return tuple(name for group in GROUPS if group not in GRIDS for name in groups[group])


def observe(
    network: nn.Module,
    levels: NoiseLevels,
    images: Tensor,
    settings: FeatureSettings,
    *,
    grey_levels: int,
    reference: Tensor,
    blank: NDArray[np.bool_] | None = None,
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
    reference : Tensor (C, H, W)
        Mean normal image, against which the anatomy is placed.
    blank : ndarray (N, H, W) bool, optional
        Pixels without evidence; none by default.

    Raises
    ------
    ConfigError
        If images and reference differ in size.
    """
    half = settings.precision == "bfloat16"
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
        rows = [
            _observe_once(network, levels, images, settings, grey_levels, draw)
            for draw in range(settings.draws)
        ]
    density, by_level = (
        torch.stack([row[part] for row in rows]).mean(0).cpu().numpy() for part in (0, 1)
    )
    residuals = torch.stack([row[2] for row in rows]).mean(0).cpu().numpy()
    count, ladder = len(images), len(settings.noise_to_signal)
    # Colour channels see one place.
    grey, mean = (x.float().mean(-3).cpu().numpy() for x in (images, reference))
    shifts = displacements(grey, mean)
    cells = (settings.grid, settings.border, shifts)
    bands = image_bands(grey, settings.bands)
    groups = {
        "nll": density[:, :1],
        "nll_excess": density[:, :1] - _png_bits(images, grey_levels)[:, None],
        "profile": density[:, 1 : 1 + PROFILE_RUNGS],
        "posterior": density[:, 1 + PROFILE_RUNGS :],
        "score_norm": by_level[:, :ladder],
        "residual": by_level[:, ladder:],
        "octave": octave_energies(residuals).reshape(count, -1),
        "energy": cell_energies(residuals, *cells).reshape(count, -1),
        "texture": cell_energies(bands, *cells).reshape(count, -1),
        "signed": cell_means(residuals, *cells).reshape(count, -1),
    }
    if blank is None:
        blank = np.zeros(grey.shape, dtype=np.bool_)
    return Observation(groups, residuals, shifts, blank)


def _observe_once(
    network: nn.Module,
    levels: NoiseLevels,
    images: Tensor,
    settings: FeatureSettings,
    grey_levels: int,
    draw: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Density features (N, 19), score norms and errors (N, 2 L), residual maps (N, L, H, W)."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + draw // 2)
    mirrored = draw % 2 == 1
    shape = images.shape[1:]
    uniform = torch.rand(shape, generator=generator).to(images)
    x_0 = dequantize(images, grey_levels, 1 - uniform if mirrored else uniform)
    density = _density_features(network, levels, x_0, grey_levels)
    norms, errors, maps = [], [], []
    for ratio in settings.noise_to_signal:
        t = torch.full((len(images),), levels.nearest(ratio), device=images.device)
        noise = torch.randn(shape, generator=generator).to(images)
        eps = (-noise if mirrored else noise).expand_as(images)
        x_t = levels.perturb(x_0, t, eps)
        eps_hat, _ = predict_noise(network, x_t, t, levels)
        eps_hat = eps_hat.detach()
        norms.append(eps_hat.square().flatten(1).mean(1))
        errors.append((eps_hat - eps).square().flatten(1).mean(1))
        residual = x_0 - clean_estimate(x_t, eps_hat, t, levels)
        maps.append(residual.mean(1))
    return density, torch.stack(norms + errors, 1).double(), torch.stack(maps, 1)


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
