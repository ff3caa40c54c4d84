r"""Feature extraction: features of every group, and residual maps, of images.

The residual map of a level is :math:`x_0 - E[x_0 \mid x_t]`, a scaled input gradient of the log
density ratio: the signed difference of the image from the model's expectation.

Noise depends on (seed, draw) and is the same for every image, so a score depends on neither the
batch nor the order. Every second draw is the negative of the one before, so that the first-order
effect of noise on a residual cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.cdm.density import clean_estimate, dequantize, log_density, predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.features.group import DrawGroup, NoiseDraw, ObservedScans, ScanGroup
from anomaly.detection.features.registry import GROUPS
from anomaly.detection.features.settings import FeatureSettings
from anomaly.detection.local import Cells
from anomaly.detection.placement import Placement
from anomaly.detection.registration import register
from anomaly.parallel import in_parallel

__all__ = ["BATCH", "FeatureExtractor", "Observation", "join"]

BATCH = 16
"""Images observed together."""

ROWS = 16
"""Noisy images in one pass of the network; more are no faster on a CPU, whose caches hold few."""


@dataclass(frozen=True)
class Observation:
    """Features and residual maps of a set of images.

    Attributes
    ----------
    groups : dict of str to ndarray (N, F) float64
        Features by group, with the columns of `feature_groups`; all except those of the
        heatmap, which need its model.
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one per level of `FeatureSettings.noise_to_signal`, in units of ``x``.
    placement : Placement
        Where the anatomy lies (`anomaly.detection.placement`).
    blank : ndarray (N, H, W) bool
        Pixels without evidence (`anomaly.data.images.blanks`).
    """

    groups: dict[str, NDArray[np.float64]]
    residuals: NDArray[np.float32]
    placement: Placement
    blank: NDArray[np.bool_]

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Observation:
        """Return the observation of a subset of the images."""
        groups = {k: v[rows] for k, v in self.groups.items()}
        return Observation(
            groups, self.residuals[rows], self.placement.select(rows), self.blank[rows]
        )


def join(parts: list[Observation]) -> Observation:
    """Concatenate observations of several sets of images."""
    return Observation(
        {k: np.concatenate([part.groups[k] for part in parts]) for k in parts[0].groups},
        np.concatenate([part.residuals for part in parts]),
        Placement.join([part.placement for part in parts]),
        np.concatenate([part.blank for part in parts]),
    )


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes observations of images with a network and its settings.

    Attributes
    ----------
    network : Module
        In evaluation mode.
    levels : NoiseLevels
    settings : FeatureSettings
    grey_levels : int
        Grey values of the images.
    reference : Tensor (C, H, W)
        Mean normal image, to which images are registered.
    """

    network: nn.Module
    levels: NoiseLevels
    settings: FeatureSettings
    grey_levels: int
    reference: Tensor

    def __call__(self, images: Tensor, blank: NDArray[np.bool_] | None = None) -> Observation:
        """Compute the observation of images.

        Parameters
        ----------
        images : Tensor (N, C, H, W) in [-1, 1], quantised, on the network's device
        blank : ndarray (N, H, W) bool, optional
            Pixels without evidence; none by default.

        Raises
        ------
        ConfigError
            If images and reference differ in size.
        """
        settings = self.settings
        half = settings.precision == "bfloat16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            draws = [self._draw(images, number) for number in range(settings.draws)]
            drawn = {
                group.name: torch.stack([group.compute(draw) for draw, _ in draws]).mean(0)
                for group in GROUPS.values()
                if isinstance(group, DrawGroup)
            }
        groups = {name: features.cpu().numpy() for name, features in drawn.items()}
        residuals = torch.stack([maps for _, maps in draws]).mean(0).cpu().numpy()
        grey = images.float().mean(-3).cpu().numpy()  # colour channels share the geometry
        mean = self.reference.float().mean(-3).cpu().numpy()
        placement = register(grey, mean)
        cells = Cells.of(placement, grey.shape[1:], settings.grid, settings.border)
        scans = ObservedScans(
            images, grey, self.grey_levels, residuals, placement, cells, settings, groups
        )
        for group in GROUPS.values():
            if isinstance(group, ScanGroup):
                groups[group.name] = group.compute(scans)
        groups = {name: groups[name] for name in GROUPS if name in groups}
        if blank is None:
            blank = np.zeros(grey.shape, dtype=np.bool_)
        return Observation(groups, residuals, placement, blank)

    def batches(
        self, images: Tensor, blank: NDArray[np.bool_], device: torch.device
    ) -> Iterator[Observation]:
        """Yield the observations of images in batches, in order, computed in parallel on a device.

        Parameters as in a call. The residual maps of all images may not fit in memory.
        """
        parts = zip(
            images.split(BATCH), np.split(blank, range(BATCH, len(blank), BATCH)), strict=True
        )

        def observe(part: tuple[Tensor, NDArray[np.bool_]]) -> Observation:
            return self(part[0].to(device), part[1])

        return (observed for _, observed in in_parallel(observe, parts, device))

    def _draw(self, images: Tensor, number: int) -> tuple[NoiseDraw, Tensor]:
        """Evaluate the network under one noise draw; return residual maps (N, L, H, W) too."""
        levels, settings = self.levels, self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number // 2)
        mirrored = number % 2 == 1
        shape = images.shape[1:]
        uniform = torch.rand(shape, generator=generator).to(images)
        x_0 = dequantize(images, self.grey_levels, 1 - uniform if mirrored else uniform)
        with torch.no_grad():
            logits = self.network(x_0)
            log_p = log_density(logits, x_0)
            log_posterior = torch.log_softmax(logits.double(), 1)
        t = torch.tensor([levels.nearest(ratio) for ratio in settings.noise_to_signal])
        noise = torch.randn((len(t), *shape), generator=generator).to(images)
        # One row per level and image: the network sees no difference, and large batches are faster.
        count = len(images)
        t = t.to(images.device).repeat_interleave(count)
        eps = (-noise if mirrored else noise).repeat_interleave(count, 0)
        clean = x_0.repeat(len(noise), *[1] * len(shape))
        x_t = levels.perturb(clean, t, eps)
        eps_hat = torch.cat(
            [
                predict_noise(self.network, rows, of_rows, levels)
                for rows, of_rows in zip(x_t.split(ROWS), t.split(ROWS), strict=True)
            ]
        )
        residual = (clean - clean_estimate(x_t, eps_hat, t, levels)).mean(1)

        def by_level(rows: Tensor) -> Tensor:
            return rows.reshape(len(noise), count, *rows.shape[1:]).transpose(0, 1)

        norms = by_level(eps_hat.square().flatten(1).mean(1))
        errors = by_level((eps_hat - eps).square().flatten(1).mean(1))
        draw = NoiseDraw(
            log_p,
            log_posterior,
            norms,
            errors,
            dims=x_0[0].numel(),
            grey_levels=self.grey_levels,
            last_level=levels.last,
        )
        return draw, by_level(residual)
